"""Orbax checkpoints: what is in one, reading and writing."""
