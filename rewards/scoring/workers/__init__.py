"""Rewards in processes of their own: `pool.py` is the trainer's side, `worker.py` theirs."""
