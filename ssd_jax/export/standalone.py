"""Detect objects in an image with an exported network.

A copy of this module, ssd_onnx.py, is written next to the exported file, ssd.onnx, together with
ssd_onnx.json, which it reads. It needs NumPy, OpenCV and the runtime of the format: jax and
flatbuffers, onnxruntime, ai-edge-litert or tensorflow.

    python ssd_onnx.py photo.jpg        prints class, score, xmin, ymin, xmax, ymax

    from ssd_onnx import Model, read_image
    model = Model()
    for name, score, box in model(read_image("photo.jpg"), threshold=0.5): ...
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np


class Model:
    """Exported network; call it with an image to get the detections.

    Args:
        about: JSON file that describes the network; None: the one named like this module.
    """

    def __init__(self, about=None):
        about = Path(about or Path(__file__).with_suffix(".json"))
        self.about = json.loads(about.read_text("utf-8"))
        self.size = self.about["input"]["shape"][1]
        self.batch = self.about["input"]["shape"][0] or 1
        self.names = self.about["classes"]
        self._run = load(about.with_name(self.about["file"]), self.about["form"])

    def __call__(self, image, threshold=0.5):
        """Detect objects in an RGB image, uint8 [H, W, 3].

        Returns:
            (class name, score, (xmin, ymin, xmax, ymax)) of each detection, in descending order of
            score. Boxes are in continuous pixels, clipped to the image.
        """
        inputs = np.zeros((self.batch, self.size, self.size, 3), np.uint8)
        inputs[0] = preprocess(image, self.size)
        boxes, scores, labels = self.detect(inputs)[0]
        height, width = image.shape[:2]
        rows = zip(to_pixels(boxes, width, height), scores, labels, strict=True)
        return [
            (self.names[label - 1], float(score), tuple(map(float, box)))
            for box, score, label in rows
            if score > threshold
        ]

    def detect(self, inputs):
        """Return (boxes [n, 4] as fractions, scores [n], labels [n] from 1) of each input image."""
        outputs = self._run(inputs)
        if self.about["suppressed"]:
            boxes, scores, labels, count = outputs
            return [(boxes[b, :n], scores[b, :n], labels[b, :n]) for b, n in enumerate(count)]
        nms = self.about["suppression"]
        return [suppress(*image, **nms) for image in zip(*outputs, strict=True)]


def read_image(path):
    """Read an image file as RGB uint8 [H, W, 3], rotated according to its EXIF data."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise OSError(f"{path} cannot be read as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def preprocess(image, size):
    """Resize an image, RGB uint8 [H, W, 3], to the square input of the network."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def to_pixels(boxes, width, height):
    """Convert boxes from fractions of an image to pixels, clipped to the image."""
    limits = np.array([width, height, width, height], np.float64)
    return np.clip(boxes.astype(np.float64) * limits, 0, limits).astype(np.float32)


def suppress(boxes, scores, score_threshold, iou_threshold, topk_candidates, detections_per_image):
    """Apply non-maximum suppression to the boxes [P, 4] and scores [P, C] of an image.

    Class 0 is background. In each class, the best `topk_candidates` scores above the threshold are
    visited in descending order; a box whose IoU with a kept box is above `iou_threshold` is
    dropped.

    Returns:
        Boxes, scores and labels of the best `detections_per_image` kept boxes.
    """
    kept = []
    for label in range(1, scores.shape[1]):
        class_scores = scores[:, label]
        order = np.argsort(-class_scores, kind="stable")[:topk_candidates]
        order = order[class_scores[order] > score_threshold]
        while len(order):
            first, order = order[0], order[1:]
            kept.append((-class_scores[first], label, first))
            order = order[iou(boxes[first], boxes[order]) <= iou_threshold]
    kept = sorted(kept)[:detections_per_image]
    rows = np.array([prior for _, _, prior in kept], int)
    labels = np.array([label for _, label, _ in kept], np.int32)
    return boxes[rows], scores[rows, labels], labels


def iou(box, boxes):
    """Compute the IoU of a box with each of boxes [n, 4], xyxy; 0 if both have no area."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    inter = np.prod(np.maximum(sides, 0), axis=1)
    union = _area(box) + _area(boxes) - inter
    return np.where(union > 0, inter / np.where(union > 0, union, 1), 0)


def _area(boxes):
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def load(path, form):
    """Load a file; return a function from images, uint8 [B, S, S, 3], to its outputs."""
    if form == "stablehlo":
        from jax import export

        program = export.deserialize(bytearray(Path(path).read_bytes()))
        return lambda images: [np.asarray(x) for x in program.call(images)]
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})
    if form == "tflite":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        run = interpreter.get_signature_runner()

        def predict(images):
            outputs = run(images=images)
            return outputs["boxes"], outputs["scores"]

        predict.interpreter = interpreter  # the runner does not keep it alive
        return predict
    if form == "savedmodel":
        import tensorflow as tf

        module = tf.saved_model.load(str(path))
        detect = module.signatures["serving_default"]

        def call(images):
            outputs = detect(images=tf.constant(images))
            return [outputs[name].numpy() for name in ("boxes", "scores", "labels", "count")]

        call.module = module  # keeps the weights alive
        return call
    raise ValueError(f"form is {form!r}; use stablehlo, onnx, tflite or savedmodel")


if __name__ == "__main__":
    model = Model()
    for file in sys.argv[1:]:
        for name, score, box in model(read_image(file)):
            print(file, name, f"{score:.3f}", *(f"{side:.1f}" for side in box), sep="\t")
