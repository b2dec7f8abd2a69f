"""Stored rollouts under another reward set: `python -m grpo.commands.replay RUN_DIR ...`, in `command.py`."""
