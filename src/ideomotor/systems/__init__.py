"""Recipes: where the stations meet."""
