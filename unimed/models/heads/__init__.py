"""Heads read the hidden state of a special token and point at the image."""
