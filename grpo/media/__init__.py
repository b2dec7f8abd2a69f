"""Clips, from videos and images to pixels: one `Clip` for the engine, the learner, the rewards and the evaluation."""
