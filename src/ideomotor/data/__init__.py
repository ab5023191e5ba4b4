"""Station: video file to clip."""
