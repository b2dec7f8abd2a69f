"""The media contract: one `Clip` for the engine, the learner, the rewards and the evaluation."""
