import sys

from grpo.commands.replay.command import main

sys.exit(main())
