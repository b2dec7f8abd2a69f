"""What happens before the first step: every check of a run's settings and data, and its parts put together."""
