"""From what the user names to config, weights and tokenizer."""
