"""Stored rollouts under another reward set: `egogrpo replay RUN_DIR ...`, in `command.py`."""
