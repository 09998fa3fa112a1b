"""The service tier: HTTP, the queue client, the store and the jobs that keep it."""
