"""`egogrpo evaluate`: models answer a benchmark's questions, and the stored answers are scored. Read `command.py`."""
