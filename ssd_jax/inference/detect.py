"""Detection as one compiled program, of a batch and of a whole data source."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from ssd_jax.config import Config, EvalConfig
from ssd_jax.data.pipeline import eval_batches
from ssd_jax.data.sources import DataSource
from ssd_jax.data.tables import DetectionTable
from ssd_jax.distributed import all_gather
from ssd_jax.kernels.nms import batched_nms
from ssd_jax.models.layers import INFERENCE_CACHE
from ssd_jax.models.ssd import SSD, make_inference_cache, model_priors
from ssd_jax.ops.boxes import decode_boxes
from ssd_jax.ops.nms import Detections

Variables = Mapping[str, Any]


def detect_step(
    variables: Variables,
    images: UInt8[Array, "B S S 3"],
    *,
    model: SSD,
    priors: Float[np.ndarray, "P 4"],
    variances: tuple[float, float],
    config: EvalConfig,
) -> Detections:
    """Detect objects in a batch: network, decoding and suppression.

    Every field of the result is [B, ...]; boxes are fractions of the image.
    """
    outputs = cast(tuple[Array, Array], model.apply(variables, images))
    return post_process(*outputs, priors=priors, variances=variances, config=config)


def post_process(
    loc: Float[Array, "B P 4"],
    conf: Float[Array, "B P C"],
    *,
    priors: Float[np.ndarray, "P 4"],
    variances: tuple[float, float],
    config: EvalConfig,
) -> Detections:
    """Decode a network's outputs, box offsets and class logits; see `detect_step`."""
    scores = jax.nn.softmax(conf, axis=-1)
    decode = partial(
        decode_boxes, priors_cxcywh=priors, variances=variances, max_box_scale=config.max_box_scale
    )
    boxes = jax.vmap(decode)(loc)
    if config.clip_boxes:
        boxes = jnp.clip(boxes, 0, 1)
    return batched_nms(
        boxes,
        scores,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms_iou_threshold,
        topk_candidates=config.topk_candidates,
        detections_per_image=config.detections_per_image,
    )


def detection_settings(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of `post_process` for a config."""
    return {
        "priors": model_priors(config.model, config.priors),
        "variances": config.priors.variances,
        "config": config.eval,
    }


def make_post_process(config: Config) -> Callable[[Array, Array], Detections]:
    """Compile `post_process` alone, for measurements."""
    return jax.jit(partial(post_process, **detection_settings(config)))


class DetectFn:
    """`detect_step` compiled for the local devices, which share every batch.

    Batches may have any size; they are padded to a multiple of the devices.
    """

    def __init__(self, model: SSD, config: Config) -> None:
        mesh = Mesh(np.array(jax.local_devices()), ("batch",))
        replicated, split = PartitionSpec(), PartitionSpec("batch")
        step = partial(detect_step, model=model, **detection_settings(config))
        self._step = jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(replicated, split), out_specs=split)
        )
        self._cache = jax.jit(partial(make_inference_cache, model))
        self._num_devices = mesh.size
        self._replicated = NamedSharding(mesh, replicated)
        self._split = NamedSharding(mesh, split)

    def prepare(self, variables: Variables) -> Variables:
        """Prepare variables for many batches: copy them to the devices and transform kernels.

        Only CPUs transform kernels (see `ssd_jax.models.layers.INFERENCE_CACHE`). Without this,
        detection does both for every batch.
        """
        if jax.default_backend() == "cpu" and INFERENCE_CACHE not in variables:
            variables = {**variables, **self._cache(variables)}
        return jax.device_put(variables, self._replicated)

    def __call__(self, variables: Variables, images: UInt8[np.ndarray, "B S S 3"]) -> Detections:
        """Detect objects in a batch; every field of the result is [B, ...]."""
        missing = -len(images) % self._num_devices
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        # Variables that are on the devices already are not copied.
        variables = jax.device_put(variables, self._replicated)
        detections = self._step(variables, jax.device_put(padded, self._split))
        return Detections(*(field[: len(images)] for field in detections))


class StoppedError(Exception):
    """The detection was stopped before its end."""


def never() -> bool:
    """Return false: never stop the detection."""
    return False


def detect_source(
    detect: DetectFn,
    variables: Variables,
    source: DataSource,
    *,
    image_size: int,
    batch_size: int,
    stop: Callable[[], bool] = never,
) -> DetectionTable:
    """Detect objects in all images of a source.

    Each batch is dispatched to the devices before the result of the previous one is read. Several
    processes share the images, and each gets the whole table, in the order of the source.

    Args:
        detect: detection of the network.
        variables: parameters and batch statistics.
        source: the images.
        image_size: side of the network's input (pixels).
        batch_size: images per batch of this process.
        stop: called after each batch; if it returns true in any process, all of them stop.

    Returns:
        Detections with boxes in continuous pixels of the original images.

    Raises:
        StoppedError: `stop` returned true in one of the processes.
    """
    variables = detect.prepare(variables)
    parts: list[tuple[np.ndarray, Detections]] = []
    waiting: list[tuple[np.ndarray, Detections]] = []
    stopped = False
    for batch in eval_batches(
        source,
        image_size=image_size,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ):
        waiting.append((batch["index"], detect(variables, batch["image"])))
        if len(waiting) > 1:
            parts.append(jax.device_get(waiting.pop(0)))
        if stop():
            stopped = True
            break
    if np.any(all_gather(np.int32(stopped))):
        raise StoppedError
    parts += jax.device_get(waiting)
    # [images of this process, ...], equally many in all processes.
    index = np.concatenate([index for index, _ in parts])
    batches = [batch for _, batch in parts]
    detections = jax.tree.map(lambda *fields: np.concatenate(fields), *batches)
    index, detections = jax.tree.map(_one_axis, all_gather((index, detections)))
    columns = []
    for b in np.argsort(index, kind="stable"):
        record = int(index[b])
        if record < 0:  # padding of the last batch
            continue
        annotation = source.annotation(record)
        boxes, scores, labels = to_pixels(detections, b, annotation.width, annotation.height)
        columns.append((np.full(len(scores), record), labels, scores, boxes))
    # A source has at least one image, so there is something to concatenate.
    return DetectionTable(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _one_axis(x: np.ndarray) -> np.ndarray:
    """Reshape [processes, n, ...] to [processes * n, ...]."""
    return x.reshape(-1, *x.shape[2:])


def to_pixels(
    detections: Detections, k: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert the network's detections in image k of a batch to pixels and class ids.

    Background, class 0 of the network, is stripped here and nowhere else.

    Args:
        detections: of a batch, on the host.
        k: index of the image in the batch.
        width: of the original image.
        height: of the original image.

    Returns:
        Boxes, float64 [n, 4], xyxy in continuous pixels clipped to the image; scores, float32 [n],
        in descending order; labels, int32 [n], 0-based class ids.
    """
    n = int(detections.count[k])
    size = np.array([width, height] * 2, np.float64)
    boxes = np.clip(detections.boxes[k, :n].astype(np.float64) * size, 0, size)
    return boxes, np.asarray(detections.scores[k, :n]), np.asarray(detections.labels[k, :n]) - 1
