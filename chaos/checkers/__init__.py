"""Judges of a drill: pure functions from what clients and servers noted to a verdict with its reason."""
