"""Station: what was seen to what is foretold, and the features a head reads."""
