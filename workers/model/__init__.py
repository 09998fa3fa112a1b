"""One decoder, families as data, loaders."""
