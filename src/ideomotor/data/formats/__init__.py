"""Readers of what people have, one file a format."""
