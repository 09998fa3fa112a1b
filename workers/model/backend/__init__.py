"""Models of transformers' own code, with our paged cache, batches and attention."""
