import sys

from rewards.replay.command import main

sys.exit(main())
