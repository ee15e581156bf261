"""The input pipeline: shuffle, shard, load, augment, pad and batch the records of a source.

The batch of a training step depends on the seed and the step only, never on the number of
processes, workers or threads, and an iterator can resume where another one stopped.

Importing this module imports JAX, because Grain does. Neither this module nor a worker process
uses it, and no worker touches an accelerator.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import cv2
import grain
import numpy as np
from absl import flags

from ssd_jax.config import ConfigError, DataConfig
from ssd_jax.data.augmentation import augment_caffe, preprocess_eval
from ssd_jax.data.errors import DataError
from ssd_jax.data.ssd_pytorch import augment_ssd_pytorch
from ssd_jax.data.types import Annotation, DataSource, Example

Batch = dict[str, np.ndarray]

_AHEAD = 2
"""Batches that each worker process prefetches."""
_ATTEMPTS = 3
"""Attempts to start worker processes for one batch."""


class TrainBatches(Iterator[Batch]):
    """An endless iterator of training batches whose position can be saved; see `train_batches`."""

    def __init__(
        self,
        order: grain.MapDataset,
        make_batch: Callable[[list[tuple[int, int]]], Batch],
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
        workers: int,
        identity: dict[str, int],
    ) -> None:
        self._order = order
        self._make_batch = make_batch
        self._global_batch = batch_size * process_count
        self._local = slice(process_index * batch_size, (process_index + 1) * batch_size)
        self._workers = workers
        self._identity = identity
        self._position = 0
        self._batches: grain.DatasetIterator | None = None
        self._restarts = 0

    def __next__(self) -> Batch:
        for attempt in range(_ATTEMPTS):
            if self._batches is None:
                self._batches = self._start()
            try:
                batch = next(self._batches)
                break
            except BaseException as error:
                # Grain would skip the remaining batches of the failed worker; restart it.
                self.close()
                if not _worker_died(error):
                    raise
                if attempt + 1 == _ATTEMPTS:
                    raise DataError(
                        f"worker processes died {_ATTEMPTS} times without making a batch "
                        f"({error}); if memory ran out, lower data.num_workers"
                    ) from None
                self._restarts += 1
        self._position += self._global_batch
        # A worker's arrays are in shared memory, which it reuses.
        return {name: np.array(values) for name, values in batch.items()}

    def get_state(self) -> dict[str, int]:
        """Return the position of the next batch for JSON; it is equal in all processes.

        `position` is the number of images that all processes together have used.
        """
        return {"position": self._position, **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Resume at a position from `get_state`, with any number of workers and processes.

        Raises:
            ConfigError: the position was saved with another dataset or seed.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ConfigError(
                    f"the saved data position has {name} {state.get(name)} and this run has "
                    f"{value}; use the {name} of the saved run, or start a new run"
                )
        self.close()
        self._position = int(state["position"])

    def take_restarts(self) -> int:
        """Return the number of restarts of dead worker processes since the last call."""
        restarts, self._restarts = self._restarts, 0
        return restarts

    def close(self) -> None:
        """Stop worker processes and threads; the next batch starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self) -> grain.DatasetIterator:
        # Each process takes one slice of the global batch: all slices, in order, are the batch of
        # a single process. Records are grouped into batches before they are distributed to
        # workers, so that the number of workers does not change a batch.
        batches = (
            self._order[self._position :]
            .batch(self._global_batch, drop_remainder=True, batch_fn=list)
            .map(_TakeSlice(self._local))
            .map(self._make_batch)
        )
        if self._workers == 0:
            threads = min(4, os.cpu_count() or 1)
            return iter(batches.to_iter_dataset(_read_ahead(threads)))
        # Grain's worker processes read absl's flags, which only absl's own mains parse.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        return iter(
            batches.to_iter_dataset(_read_ahead(1)).mp_prefetch(
                grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=_AHEAD),
                worker_init_fn=_start_worker,
            )
        )


def train_batches(
    source: DataSource,
    data: DataConfig,
    *,
    image_size: int,
    mean: tuple[float, float, float],
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Return endless batches of augmented images with their objects.

    Every epoch has each record once, in a new order; a batch may contain the end of one epoch and
    the start of the next. The batches of all processes in a step, concatenated in the order of the
    processes, equal the batch of a single process. An image's augmentation depends on (seed,
    epoch, record index).

    Args:
        source: the records; must be picklable if data.num_workers is above 0.
        data: augmentation, padding and workers.
        image_size: side S of the images (pixels).
        mean: RGB fill of the canvas of the expansion.
        batch_size: images B per step in this process.
        seed: seed of order and augmentation.
        process_index: index of this process.
        process_count: number of processes that share the data.

    Returns:
        An iterator of dicts: image uint8 [B, S, S, 3]; boxes float32 [B, M, 4], xyxy in [0, 1];
        labels int32 [B, M]; mask bool [B, M], True for objects; index int64 [B], the record, for
        messages. M is data.max_objects; padding is 0. Close it after use to stop the worker
        processes.

    Raises:
        DataError: no record can be trained on, or one has more objects than M.
    """
    used = _training_records(source, data)
    # Grain shuffles an epoch by seed + epoch. Hash the seed, or seed 1 would repeat the epochs of
    # seed 0 shifted by one.
    order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    records = grain.MapDataset.source(used).shuffle(order_seed).repeat()
    return TrainBatches(
        records.map_with_index(_WithEpoch(len(used))),
        _MakeTrainBatch(source, data, image_size, mean, seed),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        workers=data.num_workers,
        identity={"records": len(used), "seed": seed},
    )


def eval_batches(
    source: DataSource,
    *,
    image_size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield all records once, in order, without augmentation, prefetched by a few threads.

    Process i has records i, i + process_count, and so on. All processes have the same number of
    batches, as collectives require.

    Args:
        source: the records.
        image_size: side S of the images (pixels).
        batch_size: images B per batch.
        process_index: index of this process.
        process_count: number of processes that share the data.

    Yields:
        A dict: image uint8 [B, S, S, 3]; index int32 [B], the record. Padding at the end has index
        -1 and image 0.
    """
    steps = -(-len(source) // (batch_size * process_count))
    records = np.full(steps * batch_size * process_count, -1, np.int32)
    records[: len(source)] = np.arange(len(source))
    local = records[process_index::process_count].reshape(steps, batch_size)
    if steps == 0:
        return
    threads = min(4, os.cpu_count() or 1)
    batches = iter(
        grain.MapDataset.source(local)
        .map(_MakeEvalBatch(source, image_size))
        .to_iter_dataset(_read_ahead(threads))
    )
    try:
        yield from batches
    finally:
        batches.close()


class _WithEpoch:
    """Map (position in the stream, record) to (epoch, record)."""

    def __init__(self, records: int) -> None:
        self._records = records

    def __call__(self, position: int, record: int) -> tuple[int, int]:
        return position // self._records, record


class _TakeSlice:
    """Take this process's slice of the global batch."""

    def __init__(self, local: slice) -> None:
        self._local = local

    def __call__(self, block: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return block[self._local]


class _MakeTrainBatch:
    """Map the (epoch, record) of each image to the batch."""

    def __init__(
        self,
        source: DataSource,
        data: DataConfig,
        image_size: int,
        mean: tuple[float, float, float],
        seed: int,
    ) -> None:
        self._source = source
        self._data = data
        self._size = image_size
        self._mean = mean
        self._seed = seed

    def __call__(self, block: list[tuple[int, int]]) -> Batch:
        b, m, s = len(block), self._data.max_objects, self._size
        batch: Batch = {
            "image": np.zeros((b, s, s, 3), np.uint8),
            "boxes": np.zeros((b, m, 4), np.float32),
            "labels": np.zeros((b, m), np.int32),
            "mask": np.zeros((b, m), bool),
            "index": np.array([record for _, record in block], np.int64),
        }
        for k, (epoch, record) in enumerate(block):
            image, boxes, labels = self._example(epoch, record)
            n = len(boxes)
            batch["image"][k] = image
            batch["boxes"][k, :n] = boxes
            batch["labels"][k, :n] = labels
            batch["mask"][k, :n] = True
        return batch

    def _example(self, epoch: int, record: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        example = self._source[record]
        used = _used(example, self._data)
        boxes, labels = example.boxes[used], example.labels[used]
        if self._data.augment == "none":
            return preprocess_eval(example.image, self._size), boxes, labels
        augment = augment_caffe if self._data.augment == "caffe" else augment_ssd_pytorch
        return augment(
            np.random.default_rng([self._seed, epoch, record]),
            example.image,
            boxes,
            labels,
            size=self._size,
            fill=self._mean,
            expand_ratio=self._data.expand_ratio,
            min_crop_scale=self._data.min_crop_scale,
            max_crop_aspect_ratio=self._data.max_crop_aspect_ratio,
            flip_vertically=self._data.vertical_flip,
        )


class _MakeEvalBatch:
    """Map records, -1 for padding, to the batch."""

    def __init__(self, source: DataSource, image_size: int) -> None:
        self._source = source
        self._size = image_size

    def __call__(self, records: np.ndarray) -> Batch:
        image = np.zeros((len(records), self._size, self._size, 3), np.uint8)
        for k, record in enumerate(records.tolist()):
            if record >= 0:
                image[k] = preprocess_eval(self._source.image(record), self._size)
        return {"image": image, "index": records}


def _training_records(source: DataSource, data: DataConfig) -> list[int]:
    """Return the records to train on.

    Raises:
        DataError: there is none, or one has more objects than data.max_objects.
    """
    counts = [int(_used(source.annotation(i), data).sum()) for i in range(len(source))]
    most = max(counts, default=0)
    if most > data.max_objects:
        worst = source.annotation(counts.index(most)).image_id
        raise DataError(
            f"{worst} has {most} objects and data.max_objects is {data.max_objects}; "
            f"set it to {most} or more"
        )
    used = [i for i, count in enumerate(counts) if count or data.keep_empty]
    if not used:
        missing = "image" if data.keep_empty else "image with an object to train on"
        raise DataError(f"the training split has no {missing}; name another in data.train_split")
    return used


def _used(record: Annotation | Example, data: DataConfig) -> np.ndarray:
    """Return the mask of the objects to train on, bool [n]; never crowds."""
    return ~record.crowd if data.use_difficult else ~(record.crowd | record.difficult)


def _read_ahead(threads: int) -> Any:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)


def _worker_died(error: BaseException) -> bool:
    """Return whether the error says that a worker process ended, e.g. killed for its memory."""
    return isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error)


def _start_worker(index: int, count: int) -> None:
    # There is one worker process per core; OpenCV's threads would compete with them.
    cv2.setNumThreads(1)
    # Ctrl-C and schedulers signal the whole process group; the training process stops its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """End this process when its parent is gone, e.g. by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
