"""Ground truth in COCO's and VOC's annotation files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.config import UserError
from ssd_jax.data.errors import DataError
from ssd_jax.data.formats.coco_json import read_instances
from ssd_jax.data.formats.voc import IMAGE_SUFFIXES, annotated_ids, read_annotation
from ssd_jax.data.images import read_image_file
from ssd_jax.data.tables import GroundTruth
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.matching import BoxConvention
from ssd_jax.evaluation.result_files.pixels import corners_to_continuous, xywh_to_continuous
from ssd_jax.io import is_dir, is_file

Array = np.ndarray[Any, Any]


class ResultsError(UserError):
    """A results or annotation file that cannot be used; the message names file and entry."""


@dataclass(frozen=True)
class AnnotationFile:
    """The ground truth in annotation files, with their ids of images and classes."""

    path: Path
    classes: tuple[str, ...]
    """Name of each class id."""
    objects: GroundTruth
    """`image` is an index into `image_ids`; COCO's crowds are difficult."""
    area: Array
    """float64 [N], area of each object (square pixels): of its segmentation, or of its box if the
    file has no area, as VOC's."""
    image_ids: tuple[int | str, ...]
    image_files: tuple[str, ...]
    """File name of each image, without suffix for VOC; "" if unknown."""
    category_ids: tuple[int, ...]
    """COCO's id of each class; empty for VOC."""
    box_convention: BoxConvention | None
    """Convention of all files; None: inclusive for VOC's files, exclusive for COCO's."""
    image_sizes: Array | None
    """int [images, 2], width and height; None unless all are known."""

    @property
    def reported_convention(self) -> BoxConvention:
        """The convention of the annotations, for reports."""
        return self.box_convention or ("exclusive" if self.category_ids else "inclusive")

    def to_evaluation_data(self, images: Path | None) -> EvaluationData:
        """Convert to ground truth whose images are read from a folder, if there is one.

        Raises:
            ResultsError: the folder does not exist.
        """
        if images is not None and not is_dir(images):
            raise ResultsError(f"--images: folder not found: {images}")
        names = [str(image_id) for image_id in self.image_ids]
        if len(set(names)) < len(names):  # 1 and "1"
            names = [f"{k}-{name}" for k, name in enumerate(names)]
        return EvaluationData(
            classes=self.classes,
            objects=self.objects,
            area=self.area,
            image_names=names,
            read_image=partial(_read_image, images, self.image_files),
            image_sizes=self.image_sizes,
        )


def _read_image(folder: Path | None, names: Sequence[str], k: int) -> Array | None:
    """Read image k of a folder, trying the suffixes of images if its name has none."""
    if folder is None or not names[k]:
        return None
    for suffix in ("", *IMAGE_SUFFIXES):
        path = folder / f"{names[k]}{suffix}"
        if is_file(path):
            try:
                return read_image_file(path)[1]
            except DataError:
                return None
    return None


def read_annotations(
    path: Path, split: str = "", box_convention: BoxConvention | None = None
) -> AnnotationFile:
    """Read the ground truth of a COCO annotation file, or of a folder with VOC's Annotations/.

    Args:
        path: of the file or the folder; ~ is the home directory.
        split: a list in the folder's ImageSets/Main, without .txt; "": all annotations.
        box_convention: convention of the annotations and of results files evaluated against them,
            see `AnnotationFile`.

    Raises:
        UserError: the file does not exist or cannot be used.
    """
    path = path.expanduser()
    if is_dir(path / "Annotations"):
        return _read_voc_annotations(path, split, box_convention)
    if is_file(path) and not split:
        return _read_coco_annotations(path, box_convention)
    if split and is_file(path):
        raise ResultsError(f"--split applies to VOC folders and {path} is a file; leave it out")
    raise ResultsError(
        f"{path} is neither a COCO annotation file nor a folder with VOC's Annotations/"
    )


def _read_coco_annotations(path: Path, box_convention: BoxConvention | None) -> AnnotationFile:
    instances = read_instances(path)
    # Equal scores keep the order of the images, which is that of their ids in pycocotools.
    ids = sorted(instances.images, key=lambda key: (isinstance(key, str), key))
    categories = sorted(instances.categories)
    images = {key: k for k, key in enumerate(ids)}
    labels = {key: k for k, key in enumerate(categories)}
    rows = instances.annotations
    boxes = np.array([box for _, _, box, _, _ in rows], np.float64).reshape(-1, 4)
    return AnnotationFile(
        path=path,
        classes=tuple(instances.categories[key] for key in categories),
        objects=GroundTruth(
            image=np.array([images[image] for image, *_ in rows]),
            label=np.array([labels[category] for _, category, *_ in rows]),
            boxes=xywh_to_continuous(boxes, box_convention or "exclusive"),
            difficult=np.array([crowd for *_, crowd in rows], bool),
        ),
        area=np.array([area for *_, area, _ in rows], np.float64),
        image_ids=tuple(ids),
        image_files=tuple(instances.images[key] for key in ids),
        category_ids=tuple(categories),
        box_convention=box_convention,
        image_sizes=_all_sizes([instances.sizes.get(key) for key in ids]),
    )


def _read_voc_annotations(
    folder: Path, split: str, box_convention: BoxConvention | None
) -> AnnotationFile:
    ids = annotated_ids(folder, split)
    annotations = [read_annotation(folder, image_id) for image_id in ids]
    # Classes may have objects in images outside the split only.
    everywhere = (
        [read_annotation(folder, image_id) for image_id in annotated_ids(folder)]
        if split
        else annotations
    )
    classes = tuple(sorted({o.name for annotation in everywhere for o in annotation.objects}))
    rows = [(k, o) for k, annotation in enumerate(annotations) for o in annotation.objects]
    boxes = np.array([o.box for _, o in rows], np.float64).reshape(-1, 4)
    boxes = corners_to_continuous(boxes, box_convention or "inclusive")
    return AnnotationFile(
        path=folder,
        classes=classes,
        objects=GroundTruth(
            image=np.array([image for image, _ in rows]),
            label=np.array([classes.index(o.name) for _, o in rows]),
            boxes=boxes,
            difficult=np.array([o.difficult for _, o in rows], bool),
        ),
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        image_ids=tuple(ids),
        image_files=tuple(ids),
        category_ids=(),
        box_convention=box_convention,
        image_sizes=_all_sizes([annotation.size for annotation in annotations]),
    )


def _all_sizes(sizes: Sequence[tuple[int, int] | None]) -> Array | None:
    return np.array(sizes) if sizes and all(sizes) else None
