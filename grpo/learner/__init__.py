"""From advantages to new weights: losses, ratios, the update, optimizers, and the launch on one process or many."""
