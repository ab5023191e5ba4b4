"""Ground: parts of networks; they know neither files nor robots nor diffusion."""
