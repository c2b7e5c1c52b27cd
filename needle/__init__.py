"""Needle: distil tool calling into a student small enough for a laptop CPU."""

__version__ = "0.1.0"
