"""TensorFlow formats: a SavedModel with decoding and NMS, and a LiteRT file without NMS.

The layers are built from TensorFlow's operators, since TensorFlow 2.21 cannot read the programs
that jax2tf writes with JAX 0.10 (their StableHLO is newer). LiteRT has no operator for NMS over
several classes and a variable number of images, so its file returns the boxes and scores of all
priors, and the Python module next to the file applies NMS in NumPy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.export.layers import build_network
from ssd_jax.export.network import Network
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.models.layers import L2Norm


def write_saved_model(network: Network, path: Path, batch: int | None) -> None:
    """Write a model that detects in `batch` images (None: any number), as a folder."""
    import tensorflow as tf

    def detect(images: Any) -> dict[str, Any]:
        return _suppress(network, *_decoded(network, images))

    module = tf.Module()
    module.detect = tf.function(detect, input_signature=[_input(network, batch)], autograph=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.detect})


def write_litert(network: Network, path: Path, batch: int) -> None:
    """Write a model that returns the boxes [B, P, 4] and scores [B, P, C] of all priors."""
    import tensorflow as tf

    def predict(images: Any) -> dict[str, Any]:
        boxes, scores = _decoded(network, images)
        return {"boxes": boxes, "scores": scores}

    module = tf.Module()
    module.predict = tf.function(predict, input_signature=[_input(network, batch)], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.predict.get_concrete_function()], module
    )
    path.write_bytes(converter.convert())


def _input(network: Network, batch: int | None) -> Any:
    import tensorflow as tf

    size = network.size
    return tf.TensorSpec([batch, size, size, 3], tf.uint8, name="images")


class _Layers:
    """GraphBuilder that calls TensorFlow; feature maps are [B, H, W, C]."""

    def __init__(self, images: Any) -> None:
        import tensorflow as tf

        self._tf = tf
        self._images = images

    def images(self, mean: Sequence[float]) -> Any:
        return self._tf.cast(self._images, self._tf.float32) - self._tf.constant(mean)

    def conv(self, x: Any, kernel: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> Any:
        """A convolution and its bias."""
        reach = (kernel.shape[0] - 1) * geometry.dilation
        if geometry.stride == 1 and 2 * geometry.padding == reach:
            padding: Any = "SAME"
        else:
            padding = [[0, 0], *[[geometry.padding] * 2] * 2, [0, 0]]
        y = self._tf.nn.conv2d(
            x, kernel, strides=geometry.stride, padding=padding, dilations=geometry.dilation
        )
        return y + bias

    def relu(self, x: Any) -> Any:
        return self._tf.nn.relu(x)

    def pool(self, x: Any, size: int, *, ceil: bool) -> Any:
        if size == 3:
            return self._tf.nn.max_pool2d(x, 3, 1, "SAME")
        return self._tf.nn.max_pool2d(x, 2, 2, "SAME" if ceil else "VALID")

    def l2_norm(self, x: Any, scale: np.ndarray) -> Any:
        squares = self._tf.reduce_sum(x * x, axis=-1, keepdims=True)
        return x / self._tf.sqrt(squares + L2Norm.epsilon) * scale

    def affine(self, x: Any, scale: np.ndarray, bias: np.ndarray) -> Any:
        return x * scale + bias

    def rows(self, x: Any, values: int) -> Any:
        _, height, width, channels = x.shape
        rows = height * width * channels // values
        # A static batch size makes the LiteRT file smaller and faster.
        batch = -1 if x.shape[0] is None else x.shape[0]
        return self._tf.reshape(x, [batch, rows, values])

    def concat(self, parts: Sequence[Any]) -> Any:
        return self._tf.concat(parts, axis=1)


def _decoded(network: Network, images: Any) -> tuple[Any, Any]:
    """Decode all priors; return boxes [B, P, 4], xyxy as fractions, and scores [B, P, C]."""
    import tensorflow as tf

    config = network.config
    loc, conf = build_network(_Layers(images), network)
    centre, size = network.priors[:, :2], network.priors[:, 2:]
    center_variance, size_variance = config.priors.variances
    log_scale = loc[..., 2:] * size_variance
    if config.eval.max_box_scale:
        log_scale = tf.minimum(log_scale, np.float32(np.log(config.eval.max_box_scale)))
    box_center = loc[..., :2] * (size * center_variance) + centre
    half = tf.exp(log_scale) * (size / 2)
    boxes = tf.concat([box_center - half, box_center + half], axis=-1)
    if config.eval.clip_boxes:
        boxes = tf.clip_by_value(boxes, 0.0, 1.0)
    return boxes, tf.nn.softmax(conf, axis=-1)


def _suppress(network: Network, boxes: Any, scores: Any) -> dict[str, Any]:
    """Apply NMS, by the rules of ops/nms.py."""
    import tensorflow as tf

    config = network.config.eval
    scores = scores[..., 1:]
    topk_candidates = min(config.topk_candidates, len(network.priors))
    by_class = tf.transpose(scores, [0, 2, 1])
    last = tf.math.top_k(by_class, topk_candidates).values[..., -1]
    scores = tf.where(scores >= last[:, None, :], scores, 0.0)
    kept = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        scores,
        max_output_size_per_class=topk_candidates,
        max_total_size=config.detections_per_image,
        iou_threshold=config.nms_iou_threshold,
        score_threshold=config.score_threshold,
        clip_boxes=False,
    )
    count = kept.valid_detections
    valid = tf.sequence_mask(count, config.detections_per_image)
    labels = tf.cast(kept.nmsed_classes, tf.int32) + 1
    return {
        "boxes": kept.nmsed_boxes,
        "scores": kept.nmsed_scores,
        "labels": tf.where(valid, labels, 0),
        "count": count,
    }
