"""From an image file to named boxes in its pixels, by an exported network.

A copy of this module stands beside the exported file, ssd_onnx.py beside ssd.onnx, and so does
ssd_onnx.json, which it reads. It needs NumPy, OpenCV and the file's own runtime: jax and
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
    """An exported network; a call gives an image's detections.

    about: the JSON file beside it; None: the one called as this module.
    """

    def __init__(self, about=None):
        about = Path(about or Path(__file__).with_suffix(".json"))
        self.about = json.loads(about.read_text("utf-8"))
        self.size = self.about["input"]["shape"][1]
        self.batch = self.about["input"]["shape"][0] or 1
        self.names = self.about["classes"]
        self._run = load(about.with_name(self.about["file"]), self.about["form"])

    def __call__(self, image, threshold=0.5):
        """[(class name, score, (xmin, ymin, xmax, ymax)), ...] of an RGB image, by falling score.

        Boxes are in continuous pixels of the image, and inside it.
        """
        inputs = np.zeros((self.batch, self.size, self.size, 3), np.uint8)
        inputs[0] = preprocess(image, self.size)
        boxes, scores, labels = self.detect(inputs)[0]
        height, width = image.shape[:2]
        boxes = to_pixels(boxes, width, height)
        return [
            (self.names[label - 1], float(score), tuple(map(float, box)))
            for box, score, label in zip(boxes, scores, labels, strict=True)
            if score > threshold
        ]

    def detect(self, inputs):
        """(boxes [n, 4] as fractions, scores [n], labels [n] from 1) of each prepared image."""
        outputs = self._run(inputs)
        if self.about["suppressed"]:
            boxes, scores, labels, count = outputs
            return [(boxes[b, :n], scores[b, :n], labels[b, :n]) for b, n in enumerate(count)]
        return [suppress(*each, **self.about["suppression"]) for each in zip(*outputs, strict=True)]


def read_image(path):
    """An image file as RGB uint8 [H, W, 3], turned as its EXIF says."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise OSError(f"{path} cannot be read as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def preprocess(image, size):
    """The image, RGB uint8 [H, W, 3], as the network takes it: stretched to a square."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def to_pixels(boxes, width, height):
    """Boxes as fractions of an image, in its pixels and clipped to it."""
    limits = np.array([width, height, width, height], np.float64)
    return np.clip(boxes.astype(np.float64) * limits, 0, limits).astype(np.float32)


def suppress(boxes, scores, score_threshold, iou_threshold, topk_candidates, detections_per_image):
    """Non-maximum suppression of an image: boxes [P, 4] and scores [P, C], class 0 is background.

    In each class the `topk_candidates` best scores above the threshold are gone through by falling
    score; one that overlaps one kept before by more than `iou_threshold` (IoU) is dropped. Of what
    is kept the best `detections_per_image` are returned: boxes, scores, labels.
    """
    kept = []
    for label in range(1, scores.shape[1]):
        of_class = scores[:, label]
        order = np.argsort(-of_class, kind="stable")[:topk_candidates]
        order = order[of_class[order] > score_threshold]
        while len(order):
            first, order = order[0], order[1:]
            kept.append((-of_class[first], label, first))
            order = order[iou(boxes[first], boxes[order]) <= iou_threshold]
    kept = sorted(kept)[:detections_per_image]
    rows = np.array([prior for _, _, prior in kept], int)
    labels = np.array([label for _, label, _ in kept], np.int32)
    return boxes[rows], scores[rows, labels], labels


def iou(box, boxes):
    """Intersection over union of a box with each of [n, 4], xyxy; 0 where one has no area."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    inter = np.prod(np.maximum(sides, 0), axis=1)
    union = _area(box) + _area(boxes) - inter
    return np.where(union > 0, inter / np.where(union > 0, union, 1), 0)


def _area(boxes):
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def load(path, form):
    """A function from prepared images, uint8 [B, S, S, 3], to the outputs of the file."""
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
            found = run(images=images)
            return found["boxes"], found["scores"]

        predict.keep = interpreter  # the runner does not keep it alive
        return predict
    if form == "savedmodel":
        import tensorflow as tf

        module = tf.saved_model.load(str(path))
        detect = module.signatures["serving_default"]

        def call(images):
            found = detect(images=tf.constant(images))
            return [found[name].numpy() for name in ("boxes", "scores", "labels", "count")]

        call.keep = module  # the weights live as long as it
        return call
    raise ValueError(f"form is {form!r}; use stablehlo, onnx, tflite or savedmodel")


if __name__ == "__main__":
    model = Model()
    for file in sys.argv[1:]:
        for name, score, box in model(read_image(file)):
            print(file, name, f"{score:.3f}", *(f"{side:.1f}" for side in box), sep="\t")
