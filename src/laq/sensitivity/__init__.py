"""Predicted loss of tiles: one metric a file."""
