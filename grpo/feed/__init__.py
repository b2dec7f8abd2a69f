"""The feed of training prompts: order and shares of questions, dynamic sampling, and whether a prompt will fit."""
