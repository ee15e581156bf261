"""Images and boxes on the host: sources, augmentation, pipeline. JAX is not imported here."""
