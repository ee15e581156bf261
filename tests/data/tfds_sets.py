"""Small TFDS datasets in ArrayRecord form, written without TensorFlow."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from ssd_jax.data.tfds.builders import coco_examples, find_splits, voc_examples

CLASSES = ("cat", "dog")
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
F = tfds.features


def plain_features(**more) -> dict:
    """Those that a dataset must have, under their usual names."""
    objects = {"bbox": F.BBoxFeature(), "label": F.ClassLabel(names=CLASSES)}
    return {"image": F.Image(), "objects": F.Sequence(objects | more)}


def voc_features() -> dict:
    """Those of TFDS's voc 5.0.0."""
    label = F.ClassLabel(names=VOC_CLASSES)
    objects = {
        "label": label,
        "bbox": F.BBoxFeature(),
        "pose": F.ClassLabel(names=["frontal", "rear", "left", "right", "unspecified"]),
        "is_truncated": np.bool_,
        "is_difficult": np.bool_,
    }
    return {
        "image": F.Image(),
        "image/filename": F.Text(),
        "objects": F.Sequence(objects),
        "labels": F.Sequence(label),
        "labels_no_difficult": F.Sequence(label),
    }


def coco_features(classes: int) -> dict:
    """Features of TFDS's coco 1.1.0 with a different number of classes."""
    objects = {
        "id": np.int64,
        "area": np.int64,
        "bbox": F.BBoxFeature(),
        "label": F.ClassLabel(num_classes=classes),
        "is_crowd": np.bool_,
    }
    return {
        "image": F.Image(encoding_format="jpeg"),
        "image/filename": F.Text(),
        "image/id": np.int64,
        "objects": F.Sequence(objects),
    }


def make_builder(root: Path, name: str, version: str, features: dict) -> SimpleNamespace:
    """Minimal builder with the attributes that are read."""
    folder = root / name / version
    folder.mkdir(parents=True)
    title, _, config = name.partition("/")
    identity = DatasetIdentity(
        name=title,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name="",
        config_name=config or None,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=F.FeaturesDict(features))
    config_ = SimpleNamespace(has_test_annotations=config != "2012")
    return SimpleNamespace(name=title, info=info, builder_config=config_, folder=folder)


def write_tfds(builder: SimpleNamespace, splits: dict[str, list[dict]], per_shard=1000) -> Path:
    """Folder of the dataset with those records."""
    writer = tfds.core.SequentialWriter(builder.info, per_shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    return builder.folder


def make_tfds(
    root: Path,
    splits: dict[str, list[dict]],
    *,
    name="voc/2007",
    version="5.0.0",
    features=None,
    per_shard=1000,
) -> Path:
    """Folder of a dataset of that name; default: with the features of TFDS's voc."""
    builder = make_builder(root, name, version, features or voc_features())
    return write_tfds(builder, splits, per_shard)


def build_from_folder(root: Path, name: str, folder: Path, classes=80) -> Path:
    """Build a dataset from the records that the command reads from a folder."""
    if name.startswith("voc"):
        builder, examples = make_builder(root, name, "5.0.0", voc_features()), voc_examples
    else:
        builder, examples = make_builder(root, name, "1.1.0", coco_features(classes)), coco_examples
    splits = find_splits(name, folder)
    return write_tfds(builder, {s.name: [e for _, e in examples(builder, s)] for s in splits})


def jpeg(image: np.ndarray | None = None) -> bytes:
    """An image file, of 100x80 pixels if none is given."""
    image = np.full((80, 100, 3), 9, np.uint8) if image is None else image
    return cv2.imencode(".jpg", image)[1].tobytes()


def plain_record(*objects: dict, image: bytes | None = None) -> dict:
    return {"image": image or jpeg(), "objects": list(objects)}


def voc_record(name: str, *objects: dict, image: bytes | None = None) -> dict:
    return {
        **plain_record(*objects, image=image),
        "image/filename": f"{name}.jpg",
        "labels": [],
        "labels_no_difficult": [],
    }


def plain_object(label="cat", box=(0.1, 0.2, 0.5, 0.6), **more) -> dict:
    """`box`: ymin, xmin, ymax, xmax."""
    return {"label": label, "bbox": F.BBox(*map(float, box)), **more}


def voc_object(label="cat", box=(0.1, 0.2, 0.5, 0.6), *, difficult=False) -> dict:
    return plain_object(label, box, pose="unspecified", is_truncated=False, is_difficult=difficult)
