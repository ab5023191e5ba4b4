"""Ground: the mathematics of diffusion; takes callables, returns tensors."""
