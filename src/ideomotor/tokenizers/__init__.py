"""Station: clip to tokens or latents, and back."""
