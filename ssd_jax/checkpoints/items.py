"""Items of a checkpoint: arrays of the state and JSON, written with checksums, verified when read.

A checkpoint is a folder with the items `state`, `config` and, of a training run, `place`. The item
`checksums` holds the CRC-32 of each array by its path in the state, and of each item of JSON.
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

_JSON_ITEMS = ("config", "place")
_MAX_JSON_BYTES = 64 << 20
_MAX_REASON = 200
_SYSTEM_ERRORS = ("No space left on device", "Permission denied", "Read-only file system")


class CheckpointError(UserError):
    """A checkpoint that cannot be read; the message names it."""


def checkpoint_args(
    state: Any, config: Config, place: Mapping[str, Any] | None = None
) -> ocp.args.Composite:
    """Build what Orbax saves as one checkpoint.

    Args:
        state: tree of NumPy arrays with `params`, `batch_stats` and, of a training run, the rest of
            its state.
        config: the resolved one.
        place: of the run beside the state, as JSON takes it; None: not of a training run.

    Returns:
        Arguments of Orbax for all items, with their checksums.
    """
    items: dict[str, Any] = {"config": {"config": to_json(config)}}
    if place is not None:
        items["place"] = dict(place)
    checksums = {name: _array_checksum(array) for name, array in named_arrays(state).items()}
    checksums |= {name: _json_checksum(item) for name, item in items.items()}
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        checksums=ocp.args.JsonSave(checksums),
        **{name: ocp.args.JsonSave(item) for name, item in items.items()},
    )


class CheckpointReader:
    """Reads the items of one checkpoint and verifies each one that it returns.

    Every method raises CheckpointError, which names the checkpoint and the item, for one that is
    damaged, and ConfigError for one that may not be read. Checkpoints written before the items of
    JSON had checksums are read without those.

    Args:
        checkpoint: the folder of the checkpoint.
        advice: what to do about a damaged one, at the end of the message.
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
        """Read an item of JSON."""
        with self._refuse(item):
            value = self._read_json(item)
            checksum = _json_checksum(value)
        if self._checksums.get(item, checksum) != checksum:
            raise self._damaged(f"{item} is not what was saved")
        return value

    def shapes(self) -> Any:
        """Read the tree of the state, with shapes and types instead of arrays."""
        with self._refuse("state"):
            tree = self._handler.metadata(self._state).tree
            names = set(named_arrays(tree))
        known = set(self._checksums) - set(_JSON_ITEMS)
        for name in sorted(names ^ known):
            raise self._damaged(f"{name} has no {'array' if name in known else 'checksum'}")
        return tree

    def arrays(self, like: Any) -> Any:
        """Read a part of the state or all of it.

        Args:
            like: tree of the arrays wanted, of what has a shape and a type.

        Returns:
            The same tree of NumPy arrays. Parameters, batch statistics and their averages are
            finite.
        """
        with self._refuse("state"):
            # As NumPy arrays: where they were when they were saved does not matter.
            found = self._handler.restore(
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
        for name, array in named_arrays(found).items():
            if self._checksums.get(name) != _array_checksum(array):
                raise self._damaged(f"{name} is not what was saved")
            if name.startswith(("params/", "batch_stats/", "ema/")) and not is_finite(array):
                raise self._damaged(f"{name} is not finite")
        return found

    @property
    def _state(self) -> Path:
        return (self._path / "state").absolute()

    def _read_json(self, item: str) -> Any:
        file = self._path / item / "metadata"
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"more than {_MAX_JSON_BYTES:,} bytes")
        return json.loads(file.read_bytes())

    @contextlib.contextmanager
    def _refuse(self, item: str) -> Iterator[None]:
        """Make a CheckpointError of whatever damaged bytes make of their reader."""
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


class _SettledHandler(ocp.type_handlers.NumpyHandler):
    """Reads and writes arrays in parallel, and waits for all of them before it raises an error.

    Orbax closes the event loop as soon as one has failed. Tensorstore then has nobody to report the
    others to, writes a traceback for each, and goes on writing files that are being removed.
    """

    def metadata(self, infos: Any) -> Any:
        read = super().metadata
        return _Later(lambda: _gather(read([info]) for info in infos))

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        read = super().deserialize
        args = args or [ocp.RestoreArgs()] * len(infos)
        return await _gather(read([i], [a]) for i, a in zip(infos, args, strict=True))

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        write = super()._background_serialize
        arrays = zip(values, infos, args, strict=True)
        await _gather(write([v], [i], [a]) for v, i, a in arrays)


class _Later:
    """A call that starts when it is awaited; of a coroutine that never is, Python warns."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._call().__await__()


async def _gather(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await all calls, then raise the first error or give the items of all results."""
    results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [item for result in results for item in result or ()]


def item_handlers(processes: ocp.options.MultiprocessingOptions | None = None) -> dict[str, Any]:
    """Build Orbax's handler of each item, for those processes that take part; None: all."""
    processes = processes or ocp.options.MultiprocessingOptions()
    state = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=processes,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _SettledHandler()),
            # Unused, but Orbax logs a warning where it is missing.
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        ),
    )
    items = ("checksums", *_JSON_ITEMS)
    json_items = {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=processes) for name in items
    }
    return {"state": state, **json_items}


def named_arrays(tree: Any) -> dict[str, Any]:
    """List the leaves of a tree by their paths, as in params/base/conv1_1/kernel."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of floating-point numbers has neither NaN nor infinity."""
    return bool(jax.numpy.issubdtype(array.dtype, np.inexact) and np.isfinite(array).all())


def reason(error: BaseException) -> str:
    """What the system said, on one line, out of messages of many."""
    text = str(error)
    for known in _SYSTEM_ERRORS:
        if known in text:
            return known
    line = text.splitlines()[0][:_MAX_REASON] if text else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in line)


def _array_checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _json_checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
