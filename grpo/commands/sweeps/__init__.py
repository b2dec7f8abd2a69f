"""Sweeps: arms x seeds of one training config, from one file to one table. The command: `command.py`.

`plan` (a file becomes checked runs), `execute` and `slurm` (the runs), `results` (what came of them), `search`
(Optuna over the same runs).
"""
