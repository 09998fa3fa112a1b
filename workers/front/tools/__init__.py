"""What models say in a syntax of their own: calls of tools and reasoning, read off the text as it comes."""
