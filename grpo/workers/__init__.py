"""Workers, the processes for rewards and video decoders, which may hang, crash and leak without harm to the trainer."""
