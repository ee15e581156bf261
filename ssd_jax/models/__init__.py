"""Networks in Flax, from images to box offsets and class logits."""
