"""What travels: wire messages, the queue topology and the HTTP models. Imports nothing else of this project."""
