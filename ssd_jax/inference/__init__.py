"""Detection: batches, data sets, the Python API, drawing and latency."""
