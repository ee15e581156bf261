"""Speed benchmarks; see python -m benchmarks --help."""
