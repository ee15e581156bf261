"""Flax modules: image to box offsets and class scores; weights from elsewhere."""
