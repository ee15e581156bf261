"""What measures speed; see python -m benchmarks --help."""
