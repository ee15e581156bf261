"""Weights from elsewhere: readers, name maps, importers, exporters and starts of a training."""
