"""From totals to new weights: advantages, losses, the update, optimizers, and the launch on one process or many."""
