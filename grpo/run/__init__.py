"""The run folder and all that is written to it: settings, metrics, rollouts, failures, checkpoints, curves."""
