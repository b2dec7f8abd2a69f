"""Stored rollouts under another reward set: `python -m rewards.replay RUN_DIR ...`, in `command.py`."""
