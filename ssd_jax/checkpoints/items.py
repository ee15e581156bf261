"""Items of a checkpoint, arrays and JSON: written with checksums, verified when read.

A checkpoint is a folder with the items `state`, `config` and, in a training run,
`run_progress`. The item `checksums` holds the CRC-32 of each array, by its path in the state,
and of each JSON item.
"""

import asyncio
import contextlib
import json
import zlib
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssd_jax.config import Config, ConfigError, UserError, to_json
from ssd_jax.io import reason

_JSON_ITEMS = ("config", "run_progress")
_MAX_JSON_BYTES = 64 << 20


class CheckpointError(UserError):
    """A checkpoint that cannot be read; the message names it."""


def checkpoint_args(
    state: Any, config: Config, run_progress: Mapping[str, Any] | None = None
) -> ocp.args.Composite:
    """Build the Orbax arguments that save one checkpoint.

    Args:
        state: tree of NumPy arrays with `params`, `batch_stats` and, in a training run, the rest of
            its state.
        config: resolved config.
        run_progress: position of the training run apart from the state, as JSON; None: no run.

    Returns:
        Arguments for all items, with their checksums.
    """
    items: dict[str, Any] = {"config": {"config": to_json(config)}}
    if run_progress is not None:
        items["run_progress"] = dict(run_progress)
    checksums = {name: _array_checksum(array) for name, array in named_arrays(state).items()}
    checksums |= {name: _json_checksum(item) for name, item in items.items()}
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        checksums=ocp.args.JsonSave(checksums),
        **{name: ocp.args.JsonSave(item) for name, item in items.items()},
    )


class CheckpointReader:
    """Reader of one checkpoint that verifies every item it returns.

    Every method raises CheckpointError, which names the checkpoint and the item, if the item is
    damaged, and ConfigError if it may not be read. JSON items without a checksum are not verified.

    Args:
        checkpoint: folder of the checkpoint.
        advice: end of the error message for a damaged checkpoint.
    """

    def __init__(self, checkpoint: Path, *, advice: str = "; use another checkpoint") -> None:
        self._path = checkpoint
        self._advice = advice
        self._handler = item_handlers()["state"]
        with self._refuse("checksums"):
            has_checksums = (checkpoint / "checksums").is_dir()
        if not has_checksums:
            raise CheckpointError(
                f"checkpoint {checkpoint} has no checksums (saved by an earlier version, or "
                "incomplete); import it again or use another checkpoint"
            )
        with self._refuse("checksums"):
            for file in checkpoint.rglob("*"):
                if not (file.is_file() or file.is_dir()):  # a pipe would never answer
                    raise ValueError(f"{file.relative_to(checkpoint)} is not a file")
            self._checksums = dict(self._read_json("checksums"))

    def json(self, item: str) -> Any:
        """Read a JSON item."""
        with self._refuse(item):
            value = self._read_json(item)
            checksum = _json_checksum(value)
        if self._checksums.get(item, checksum) != checksum:
            raise self._damaged(f"{item}: checksum mismatch")
        return value

    def shapes(self) -> Any:
        """Read the shapes and types of the state's arrays, as a tree."""
        with self._refuse("state"):
            tree = self._handler.metadata(self._state).tree
            names = set(named_arrays(tree))
        expected = set(self._checksums) - set(_JSON_ITEMS)
        for name in sorted(names ^ expected):
            raise self._damaged(f"{name} has no {'array' if name in expected else 'checksum'}")
        return tree

    def arrays(self, like: Any) -> Any:
        """Read a part of the state or all of it.

        Args:
            like: tree of the arrays to read; its leaves have a shape and a type.

        Returns:
            The same tree with NumPy arrays. Parameters, batch statistics and their averages are
            finite.
        """
        with self._refuse("state"):
            # NumPy arrays do not depend on the devices on which they were saved.
            arrays = self._handler.restore(
                self._state,
                args=ocp.args.PyTreeRestore(
                    item=like,
                    restore_args=jax.tree.map(
                        lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype),
                        like,
                    ),
                    partial_restore=True,
                ),
            )
        for name, array in named_arrays(arrays).items():
            if self._checksums.get(name) != _array_checksum(array):
                raise self._damaged(f"{name}: checksum mismatch")
            if name.startswith(("params/", "batch_stats/", "ema/")) and not is_finite(array):
                raise self._damaged(f"{name} is not finite")
        return arrays

    @property
    def _state(self) -> Path:
        return (self._path / "state").absolute()

    def _read_json(self, item: str) -> Any:
        file = self._path / item / "metadata"
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"larger than {_MAX_JSON_BYTES:,} bytes")
        return json.loads(file.read_bytes())

    @contextlib.contextmanager
    def _refuse(self, item: str) -> Iterator[None]:
        """Convert every error that damaged bytes cause in their reader to a CheckpointError."""
        try:
            yield
        except PermissionError:
            raise ConfigError(
                f"checkpoint {self._path} cannot be read ({item}: Permission denied); fix the "
                "permissions"
            ) from None
        except Exception as error:
            why = reason(error).replace(f"{self._path.absolute()}/", "")
            raise self._damaged(f"{item}: {why}") from None

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {self._path} is damaged ({why}){self._advice}")


class _WaitingHandler(ocp.type_handlers.NumpyHandler):
    """Handler that waits for all parallel reads or writes before it raises the first error.

    Orbax closes the event loop at the first error. Tensorstore then cannot report the others,
    prints a traceback for each, and continues to write files that are being removed.
    """

    def metadata(self, infos: Any) -> Any:
        read = super().metadata
        return _Lazy(lambda: _gather(read([info]) for info in infos))

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        read = super().deserialize
        args = args or [ocp.RestoreArgs()] * len(infos)
        return await _gather(read([i], [a]) for i, a in zip(infos, args, strict=True))

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        write = super()._background_serialize
        arrays = zip(values, infos, args, strict=True)
        await _gather(write([v], [i], [a]) for v, i, a in arrays)


class _Lazy:
    """Call that starts when awaited; Python warns of coroutines that are never awaited."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._call().__await__()


async def _gather(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await all calls, then raise the first error or return the items of all results."""
    results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [item for result in results for item in result or ()]


def item_handlers(processes: ocp.options.MultiprocessingOptions | None = None) -> dict[str, Any]:
    """Build Orbax's handler of each item.

    Args:
        processes: processes that take part; None: all.
    """
    processes = processes or ocp.options.MultiprocessingOptions()
    state = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=processes,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _WaitingHandler()),
            # Unused, but Orbax logs a warning without it.
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        ),
    )
    items = ("checksums", *_JSON_ITEMS)
    json_items = {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=processes) for name in items
    }
    return {"state": state, **json_items}


def named_arrays(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by path, e.g. params/base/conv1_1/kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_finite(array: np.ndarray) -> bool:
    """Return whether the array holds floating-point numbers, all of them finite."""
    return bool(jax.numpy.issubdtype(array.dtype, np.inexact) and np.isfinite(array).all())


def _array_checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _json_checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
