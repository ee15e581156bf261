"""All inference paths give the same detections for one checkpoint on real images."""

import json
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

import evaluate as evaluate_main
import predict as predict_main
from ssd_jax.checkpoints.reader import find_checkpoint, write_checkpoint
from ssd_jax.cli import export
from ssd_jax.config import ExtraBlock
from ssd_jax.demo.detection import LazyDetector
from ssd_jax.evaluation.result_files import read_annotations, read_detections
from ssd_jax.export.check import PIXELS, SCORE, difference
from ssd_jax.export.standalone import Model
from ssd_jax.export.standalone import read_image as standalone_read_image
from ssd_jax.inference.detector import Detections, Detector, load_image
from ssd_jax.inference.results import coco_rows
from ssd_jax.models.ssd import init_variables, make_model
from tests.tiny import TINY, change

CONFIG = change(
    TINY,
    model={
        "classes": ("a", "b", "c"),
        "image_size": 300,
        "width_multiplier": 0.25,
        "feature_layers": ("conv4_3", "conv7", "conv8_2"),
        "extras": (ExtraBlock(64, 128, stride=2, padding=1),),
    },
    priors={"sizes": (30, 60, 111, 200), "aspect_ratios": ((2,), (2, 3), (2, 3))},
)
THRESHOLD = 0.4
MAX_DETECTIONS = CONFIG.eval.detections_per_image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("agreement") / "run"
    model = make_model(CONFIG.model, CONFIG.priors)
    write_checkpoint(run, CONFIG, init_variables(model, jax.random.key(0)))
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_data):
    """A VOC folder of 56 real images of many sizes, 6 of them grey, and 4 with EXIF rotation."""
    root = tmp_path_factory.mktemp("images")
    for name in ("Annotations", "JPEGImages", "ImageSets/Main", "turned"):
        (root / name).mkdir(parents=True)
    sources = []
    for name, count in (("bccd", 14), ("coco-mini", 20), ("voc-mini", 16)):
        sources += sorted((shared_data / name / "JPEGImages").glob("*.jpg"))[:count]
    for k, path in enumerate(sources):
        shutil.copy(path, root / "JPEGImages" / f"{k:03}.jpg")
    for k, path in enumerate(sources[20:26]):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        suffix = "png" if k % 2 else "jpg"
        cv2.imwrite(str(root / "JPEGImages" / f"grey{k}.{suffix}"), grey)
    names = sorted(p.stem for p in (root / "JPEGImages").iterdir())
    for path in (root / "JPEGImages").iterdir():
        height, width = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2]
        objects = "".join(
            f"<object><name>{c}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
            "<ymax>9</ymax></bndbox></object>"
            for c in CONFIG.model.classes
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        (root / "Annotations" / f"{path.stem}.xml").write_text(
            f"<annotation>{size}{objects}</annotation>"
        )
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names))
    for orientation, path in zip((3, 5, 6, 8), sources[30:], strict=False):
        data = path.read_bytes()
        # An APP1 segment right after the start of the image: TIFF, one entry, Orientation.
        tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0" * 6
        exif = b"Exif\0\0" + tiff
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (root / "turned" / f"{orientation}.jpg").write_bytes(data[:2] + segment + data[2:])
    return root


@pytest.fixture(scope="module")
def files(folder):
    paths = sorted((folder / "JPEGImages").iterdir()) + sorted((folder / "turned").iterdir())
    assert len(paths) == 60
    assert len({cv2.imread(str(p)).shape for p in paths}) > 15
    stored = cv2.imread(str(paths[-1]), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert stored.shape[:2] == load_image(paths[-1]).shape[:2][::-1]  # 8: a quarter turn
    return paths


@pytest.fixture(scope="module")
def reference(checkpoint, files):
    """Detections of the Python API by file."""
    detections = Detector.from_checkpoint(checkpoint, threshold=THRESHOLD)(files)
    assert sum(map(len, detections)) > 1000
    return dict(zip(files, detections, strict=True))


def assert_agree(reference, results):
    """Check that all detections have a counterpart within the export check's tolerances."""
    total = 0
    assert results
    for file, detections in results.items():
        result = difference(reference[file], detections, threshold=THRESHOLD, most=MAX_DETECTIONS)
        assert result is not None, file
        pixels, score, count = result
        assert pixels <= PIXELS, file
        assert score <= SCORE, file
        total += count
    print(f"{len(results)} images, {total} detections agree")
    assert total > 20 * len(results)


def from_rows(rows):
    """Make Detections of rows (label, score, xmin, ymin, xmax, ymax)."""
    rows = np.array(sorted(rows, key=lambda row: -row[1]), float).reshape(-1, 6)
    boxes, scores = rows[:, 2:].astype(np.float32), rows[:, 1].astype(np.float32)
    return Detections(boxes, scores, rows[:, 0].astype(np.int32), CONFIG.model.classes)


def coco_row(row):
    """Convert an entry of COCO's results to such a row."""
    x, y, w, h = row["bbox"]
    return row["category_id"] - 1, row["score"], x, y, x + w, y + h


@pytest.mark.slow
def test_predict(checkpoint, files, reference, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path, "--score-threshold", THRESHOLD]
    predict_main.main(list(map(str, [*arguments, *files])))
    rows = {str(file): [] for file in files}
    for row in json.loads((tmp_path / "detections.json").read_text()):
        rows[row["file_name"]].append(coco_row(row))
    assert_agree(reference, {Path(file): from_rows(rows[file]) for file in rows})


@pytest.mark.slow
def test_evaluate(checkpoint, folder, files, reference, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path, "--save-detections"]
    arguments += ["--data.format", "voc", "--data.root", folder, "--data.eval-split", "test"]
    evaluate_main.main(list(map(str, arguments)))
    annotations = read_annotations(folder, "test")
    table = read_detections(tmp_path / "detections", annotations)
    results = {}
    for file in files[:56]:
        k = annotations.image_ids.index(file.stem)
        rows = table.select((table.image == k) & (table.score > THRESHOLD))
        results[file] = from_rows(np.column_stack([rows.label, rows.score, rows.boxes]))
    assert_agree(reference, results)


@pytest.mark.slow
def test_demo(checkpoint, files, reference):
    demo = LazyDetector(find_checkpoint(checkpoint))
    results = {}
    for file in files:
        detections = demo.detect(file).filter(THRESHOLD)
        rows = coco_rows(detections, image_id=1, file_name=file.name)
        results[file] = from_rows([coco_row(row) for row in rows])
    assert_agree(reference, results)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "package"),
    [
        ("stablehlo", "flatbuffers"),
        ("onnx", "onnxruntime"),
        ("savedmodel", "tensorflow"),
        ("tflite", "ai_edge_litert"),
    ],
)
def test_exports(form, package, checkpoint, files, reference, tmp_path):
    pytest.importorskip(package)
    out = tmp_path / f"m.{form}"
    export.main(["--checkpoint", str(checkpoint), "--to", form, "--out", str(out)])
    model = Model(tmp_path / f"m_{form}.json")
    results = {}
    for file in files:
        detections = model(standalone_read_image(file), threshold=THRESHOLD)
        results[file] = from_rows(
            [(CONFIG.model.classes.index(name), score, *box) for name, score, box in detections]
        )
    assert_agree(reference, results)
