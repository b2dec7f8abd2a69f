"""GRPO fine-tuning for video vision-language models. Read `trainer.py` first, then `groups.py`."""
