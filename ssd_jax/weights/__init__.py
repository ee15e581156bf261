"""Weights of other programs: files, name maps, importers, exporters, fine-tuning."""
