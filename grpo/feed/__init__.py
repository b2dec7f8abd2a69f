"""Which questions a step takes: order, shares, what was learned before, and whether a prompt will fit."""
