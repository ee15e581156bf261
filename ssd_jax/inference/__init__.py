"""Detection: batches, datasets, the Python API, drawing and latency."""
