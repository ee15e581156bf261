"""Detection: images to boxes as one compiled program, for a batch and over a data set."""

import weakref
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
from ssd_jax.distributed import all_gather
from ssd_jax.evaluation.tables import DetectionTable
from ssd_jax.models.layers import INFERENCE_CACHE
from ssd_jax.models.ssd import SSD, model_priors
from ssd_jax.ops.boxes import decode_boxes
from ssd_jax.ops.nms import Detections, multiclass_nms

Variables = Mapping[str, Any]
DetectFn = Callable[[Variables, np.ndarray], Detections]


def detect_step(
    variables: Variables,
    images: UInt8[Array, "B S S 3"],
    *,
    model: SSD,
    priors: Float[np.ndarray, "P 4"],
    variances: tuple[float, float],
    config: EvalConfig,
) -> Detections:
    """The detections of a batch: network, decoding, suppression; boxes as fractions of the image.

    Every field of the result has the batch in front.
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
    """The detections in a network's outputs, box offsets and class logits; see `detect_step`."""
    scores = jax.nn.softmax(conf, axis=-1)
    decode = partial(
        decode_boxes, priors_cxcywh=priors, variances=variances, max_box_scale=config.max_box_scale
    )
    boxes = jax.vmap(decode)(loc)
    if config.clip_boxes:
        boxes = jnp.clip(boxes, 0, 1)
    suppress = partial(
        multiclass_nms,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms_iou_threshold,
        topk_candidates=config.topk_candidates,
        detections_per_image=config.detections_per_image,
    )

    def in_turn(boxes: Array, scores: Array) -> Detections:
        return jax.lax.map(lambda image: suppress(*image), (boxes, scores))

    # An image after the other stays in a CPU's cache, and takes no longer for its neighbours.
    return jax.lax.platform_dependent(boxes, scores, cpu=in_turn, default=jax.vmap(suppress))


def make_detect(model: SSD, config: Config) -> DetectFn:
    """`detect_step` compiled for the local devices, which share a batch among them.

    The function takes batches of any size; one that does not divide by the devices is filled up
    and cut again. As long as it is given the same variables, arrays of JAX, it does not compute
    again what depends on them alone.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    shared, split = PartitionSpec(), PartitionSpec("batch")
    step = jax.jit(
        jax.shard_map(
            partial(
                detect_step,
                model=model,
                priors=model_priors(config.model, config.priors),
                variances=config.priors.variances,
                config=config.eval,
            ),
            mesh=mesh,
            in_specs=(shared, split),
            out_specs=split,
        )
    )
    replicated = NamedSharding(mesh, shared)
    prepare = make_prepare(model)
    prepared = _KeepLast(lambda variables: jax.device_put(prepare(variables), replicated))

    def detect(variables: Variables, images: np.ndarray) -> Detections:
        missing = -len(images) % mesh.size
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        # No copy is made of variables that are on the devices already.
        placed = {**jax.device_put(variables, replicated), **prepared(variables)}
        found = step(placed, jax.device_put(padded, NamedSharding(mesh, split)))
        return Detections(*(field[: len(images)] for field in found))

    return detect


def make_prepare(model: SSD) -> Callable[[Variables], Variables]:
    """Return a function that computes the layers' INFERENCE_CACHE from the variables.

    On platforms other than CPU, or if the variables contain it already, it returns nothing.
    """
    size = model.config.image_size

    @jax.jit
    def prepare(variables: Variables) -> Variables:
        image = jnp.zeros((1, size, size, 3), jnp.uint8)
        return cast(Variables, model.apply(variables, image, mutable=[INFERENCE_CACHE])[1])

    on_cpu = jax.default_backend() == "cpu"
    return lambda variables: (
        prepare(variables) if on_cpu and INFERENCE_CACHE not in variables else {}
    )


class _KeepLast:
    """A function whose last result is kept as long as all arrays live that it was given."""

    def __init__(self, function: Callable[[Variables], Variables]) -> None:
        self._function = function
        self._last: tuple[list[weakref.ref[Array]], Any, Variables] | None = None

    def __call__(self, variables: Variables) -> Variables:
        leaves, tree = jax.tree.flatten(variables)
        if self._last is not None:
            known, known_tree, result = self._last
            if tree == known_tree and all(
                ref() is leaf for ref, leaf in zip(known, leaves, strict=True)
            ):
                return result
        self._last = None
        result = self._function(variables)
        # NumPy's arrays could have other values the next time.
        if all(isinstance(leaf, Array) for leaf in leaves):
            self._last = [weakref.ref(leaf, self._forget) for leaf in leaves], tree, result
        return result

    def _forget(self, _: weakref.ref[Array]) -> None:
        self._last = None


class StoppedError(Exception):
    """A detection that was asked to stop before its end."""


def never() -> bool:
    """False: a detection that nothing stops."""
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
    """Detect objects in a whole source; boxes are in pixels of the original images.

    The next batch is given to the devices before the last one's result is read. Several processes
    share the images, each with batches of its own, and all get the whole table, rows in the order
    of the source.

    Raises StoppedError, in all processes, if `stop` of any of them said so between two batches.
    """
    variables = jax.device_put(variables)
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
    found = jax.tree.map(lambda *fields: np.concatenate(fields), *(found for _, found in parts))
    index, found = jax.tree.map(_one_axis, all_gather((index, found)))
    columns = []
    for b in np.argsort(index, kind="stable"):
        record = int(index[b])
        if record < 0:  # padding of the last batch
            continue
        annotation = source.annotation(record)
        boxes, scores, labels = to_pixels(found, b, annotation.width, annotation.height)
        columns.append((np.full(len(scores), record), labels, scores, boxes))
    # A source has at least one image, and each gives a row, if an empty one.
    return DetectionTable(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _one_axis(x: np.ndarray) -> np.ndarray:
    """[processes, n, ...] as [processes * n, ...]."""
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
