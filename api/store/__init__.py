"""Postgres or SQLite behind one interface."""
