"""Output files and console tables of an evaluation."""
