"""Measurements: ratios in one run."""
