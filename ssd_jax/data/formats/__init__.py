"""Datasets in files: VOC, COCO, and generated scenes."""
