"""The rewards that configs name without a path."""
