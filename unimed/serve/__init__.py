"""Pages and services over loaded models."""
