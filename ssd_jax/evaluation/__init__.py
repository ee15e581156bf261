"""Detection over a dataset, metrics and reports."""
