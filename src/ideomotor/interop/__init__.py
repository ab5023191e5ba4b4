"""Published weights to our names: pure functions from dict to dict, one file a system."""
