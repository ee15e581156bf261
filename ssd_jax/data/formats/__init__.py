"""Data sets in files: VOC, COCO, and generated scenes."""
