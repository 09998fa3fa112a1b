"""A short file for each family of architectures."""
