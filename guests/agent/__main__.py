"""``python -m guests.agent``: see ``guests.agent.main``."""

import sys

from guests.agent.main import main

sys.exit(main())
