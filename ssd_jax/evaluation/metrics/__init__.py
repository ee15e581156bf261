"""Average precision and analysis of errors, on tables of boxes."""
