"""Learning and planning inside a world."""
