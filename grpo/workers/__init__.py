"""Processes that run other people's code for the trainer: rewards and video decoders, which hang, crash and leak."""
