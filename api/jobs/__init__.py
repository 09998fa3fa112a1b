"""Dispatcher: batch lines out. Recorder: results in."""
