"""A run's folder and what is written to it: settings, metrics, rollouts, failures, checkpoints, curves."""
