"""What processes of a training run import, for a process that is then forked (`launched.py`)."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for one as it is imported

import deepspeed  # noqa: E402, F401
import peft  # noqa: E402, F401

import grpo.startup.checks  # noqa: E402, F401
