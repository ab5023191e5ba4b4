"""Station: features to actions."""
