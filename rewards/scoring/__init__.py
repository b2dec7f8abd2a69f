"""From reward functions to totals: loading, calling in worker processes, gates and weights."""
