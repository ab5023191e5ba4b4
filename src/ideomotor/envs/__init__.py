"""Station: actions to the world (Gymnasium API, each behind an extra)."""
