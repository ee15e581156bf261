"""Reference operations of SSD for one image; `ssd_jax.kernels` has faster versions."""
