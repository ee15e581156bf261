"""Detections and annotations in the file formats of COCO and VOC; no network is needed.

COCO's results file is a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height],
"score"} in continuous pixels (cocodataset.org/#format-results). VOC's results are a folder with a
text file per class, comp4_det_test_CLASS.txt, with lines of image_id score xmin ymin xmax ymax in
pixels that count from 1 and include the last one (the VOC 2012 devkit, section 8.2).
"""

from ssd_jax.evaluation.result_files.annotations import (
    AnnotationFile,
    ResultsError,
    read_annotations,
)
from ssd_jax.evaluation.result_files.reader import read_detections
from ssd_jax.evaluation.result_files.writer import (
    write_coco_results,
    write_results,
    write_voc_results,
)

__all__ = [
    "AnnotationFile",
    "ResultsError",
    "read_annotations",
    "read_detections",
    "write_coco_results",
    "write_results",
    "write_voc_results",
]
