"""Datasets in files: VOC, COCO, YOLO, and generated scenes."""
