"""A worker with a real node: ``python -m faultinject.campaign.workers DIRECTORY``."""

import sys

from faultinject.campaign.mission.mission_runner import MissionRunner
from faultinject.campaign.workers.worker import main

if __name__ == "__main__":
    sys.exit(main(MissionRunner.open))
