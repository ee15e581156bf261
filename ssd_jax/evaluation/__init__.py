"""Detection over a data set, metrics and reports."""
