"""``python -m voter``: see voter.daemon."""

from __future__ import annotations

import sys

from voter.daemon import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
