"""SSD (Single Shot MultiBox Detector) in JAX and Flax."""
