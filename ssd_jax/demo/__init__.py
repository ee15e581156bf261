"""Demo app: detect objects in uploaded images in the browser."""

MIN_SCORE = 0.01
"""Lowest score threshold that can be selected."""
