"""Orbax checkpoints: items, reader, writer, trusted config fields."""
