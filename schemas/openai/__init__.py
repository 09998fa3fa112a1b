"""HTTP models in the shape of OpenAI's API."""
