"""Write detections in the results formats of COCO and VOC."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from ssd_jax.config import shorten
from ssd_jax.data.tables import DetectionTable
from ssd_jax.data.types import DataSource
from ssd_jax.evaluation.result_files.annotations import ResultsError
from ssd_jax.evaluation.result_files.pixels import continuous_to_voc
from ssd_jax.io import atomic_write


def write_results(
    out_dir: Path, detections: DetectionTable, source: DataSource, split: str
) -> Path:
    """Write the detections of a source in the format of its dataset.

    Returns:
        The path of the written file, out_dir/detections.json with the image and category ids of
        the annotations for COCO data; else that of the folder out_dir/detections with VOC's files.

    Raises:
        UserError: the ids or classes of the source do not fit the format.
        OSError: a file cannot be written.
    """
    if source.category_ids:
        path = out_dir / "detections.json"
        if len(set(source.image_numbers)) < len(source):
            raise ResultsError(
                f"{path}: two images of data.eval_split {split!r} have the same id; evaluate one "
                "of the joined files at a time"
            )
        missing = [name for name in source.classes if name not in source.category_ids]
        if missing:
            raise ResultsError(
                f"{path} needs category ids and the annotations have none for "
                f"{shorten(missing, 20)}; add them to the file's categories"
            )
        categories = [source.category_ids[name] for name in source.classes]
        write_coco_results(path, detections, source.image_numbers, categories)
        return path
    ids = [source.annotation(i).image_id for i in range(len(source))]
    list_name = re.sub(r"[^A-Za-z0-9]+", "-", split).strip("-")
    folder = out_dir / "detections"
    write_voc_results(folder, detections, ids, source.classes, split=list_name or "test")
    return folder


def write_coco_results(
    path: Path,
    detections: DetectionTable,
    image_ids: Sequence[int | str],
    category_ids: Sequence[int],
) -> None:
    """Write detections as COCO's results file, one per line.

    Scores keep nine digits, which represent a float32 exactly, and boxes a millionth of a pixel.

    Args:
        path: of the file, in an existing folder; it is written atomically.
        detections: `image` is an index into `image_ids`, `label` into `category_ids`.
        image_ids: as in the annotations.
        category_ids: as in the annotations.
    """
    corners = detections.boxes
    boxes = np.round(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), 6)
    lines = [
        json.dumps(
            {
                "image_id": image_ids[image],
                "category_id": category_ids[label],
                "bbox": box,
                "score": float(f"{score:.9g}"),
            }
        )
        for image, label, score, box in zip(
            detections.image.tolist(),
            detections.label.tolist(),
            detections.score.tolist(),
            boxes.tolist(),
            strict=True,
        )
    ]
    atomic_write(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())


def write_voc_results(
    folder: Path,
    detections: DetectionTable,
    image_ids: Sequence[str],
    classes: Sequence[str],
    *,
    split: str = "test",
) -> None:
    """Write detections as folder/comp4_det_SPLIT_CLASS.txt, creating the folder.

    Every class has a file, even without detections. Scores keep nine digits and boxes a millionth
    of a pixel.

    Args:
        folder: that the files are written to.
        detections: `image` is an index into `image_ids`, `label` into `classes`.
        image_ids: as in the annotations.
        classes: as in the annotations.
        split: part of the file names; it must not contain _.

    Raises:
        ResultsError: a class name cannot be part of a file name.
    """
    for name in classes:
        if PurePath(name).name != name:
            raise ResultsError(f"class {name!r} cannot be part of a file name; rename it")
    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(classes):
        rows = detections.select(detections.label == label)
        lines = [
            f"{image_ids[image]} {score:.9g} {' '.join(f'{side:.6f}' for side in box)}\n"
            for image, score, box in zip(
                rows.image.tolist(),
                rows.score.tolist(),
                continuous_to_voc(rows.boxes).tolist(),
                strict=True,
            )
        ]
        atomic_write(folder / f"comp4_det_{split}_{name}.txt", "".join(lines).encode())
