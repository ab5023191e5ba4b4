"""The engine: learner, run, optim, checkpoint, log."""
