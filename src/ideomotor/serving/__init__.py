"""A policy or a world behind a socket, and what drives a robot at the other end of it."""
