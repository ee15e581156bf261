"""Thousands of hostile inputs: each gives a result or an error of one line, within limits."""
