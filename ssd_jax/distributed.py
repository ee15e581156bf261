"""Distributed initialisation, collectives of several processes, and the compilation cache.

All functions also work in a single process.
"""

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from ssd_jax.config import COMPILATION_CACHE_DIR, ConfigError, UserError
from ssd_jax.streams import print_error

_LONGEST_WAIT_MS = 3_600_000


class CollectiveError(UserError):
    """Error that all processes of a run raise at the same point."""


class LostPeerError(UserError):
    """Error of a run that lost another process or the connection to it."""

    status = 76
    """Exit status: EX_PROTOCOL of sysexits.h."""


@contextlib.contextmanager
def distributed_context(
    *,
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    peer_timeout: int,
) -> Iterator[None]:
    """Join the processes of a run, if there are several.

    Enter it before any other use of JAX, which detects values that are None from SLURM, Open MPI,
    Kubernetes or a TPU pod. An error of this process alone ends it at once with one line: a normal
    exit would wait for the other processes, which wait for this one.

    Args:
        distributed: whether this is one of several processes; implied by any of the next three.
        coordinator: address of process 0, HOST:PORT.
        processes: number of processes.
        process: index of this process.
        peer_timeout: time without a sign of life after which another process counts as lost
            (seconds).

    Raises:
        ConfigError: the processes cannot be determined.
        LostPeerError: the other processes do not answer.
    """
    process_args = (coordinator, processes, process)
    if not distributed and process_args == (None, None, None):
        yield
        return
    _join(*process_args, peer_timeout=peer_timeout)
    try:
        yield
    except CollectiveError:
        raise
    except UserError as error:
        leave(error)
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0][:200]
        leave(
            LostPeerError(
                f"process {jax.process_index()}: another process is lost ({line}); continue with "
                "--resume and the remaining processes"
            )
        )
    except Exception:  # a bug; the other processes must not wait for this one
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def leave(error: UserError) -> NoReturn:
    """Print the error and end the process with its status, without waiting for threads."""
    print_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.status)


def _join(
    coordinator: str | None, processes: int | None, process: int | None, *, peer_timeout: int
) -> None:
    # Collectives between CPU processes; other platforms ignore it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=processes,
            process_id=process,
            heartbeat_timeout_seconds=peer_timeout,
            initialization_timeout=max(peer_timeout, 300),
        )
    except jax.errors.JaxRuntimeError as error:
        line = str(error).splitlines()[0][:200]
        raise LostPeerError(f"--distributed: the other processes do not answer ({line})") from None
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"--distributed: the processes cannot be joined ({str(error).splitlines()[0]}); give "
            "--coordinator HOST:PORT, --processes P and --process I"
        ) from None


def use_compilation_cache(folder: str = COMPILATION_CACHE_DIR) -> None:
    """Cache compiled programs in `folder`; disable the cache if it is empty.

    A folder that JAX uses already, for example from JAX_COMPILATION_CACHE_DIR, takes precedence.
    Loaded programs are executed, so the folder is created writable for its user only.

    Raises:
        ConfigError: the folder cannot be created or written. The default folder is then skipped
            silently instead.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    if not folder:
        # Later calls with the default folder do not enable it again.
        jax.config.update("jax_enable_compilation_cache", False)
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    except (OSError, RuntimeError, ValueError) as error:  # no home; a zero byte in the name
        if folder == COMPILATION_CACHE_DIR:
            return
        raise ConfigError(f"the compilation cache {folder} cannot be used: {error}") from None
    jax.config.update("jax_compilation_cache_dir", str(path))


def is_main_process() -> bool:
    """Return True in the process that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have reached the barrier.

    Needed before collectives, which on CPUs fail if a process is 30 s later than another, as after
    compiling.

    Raises:
        JaxRuntimeError: a process is lost, or does not arrive within an hour.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        get_barrier_sync_fn()(key=name, timeout_ms=_LONGEST_WAIT_MS)


def broadcast_json(value: Any) -> Any:
    """Broadcast a JSON value from the main process to all processes."""
    if jax.process_count() == 1:
        return value
    barrier("broadcast")
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    local = data if is_main_process() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(local)).tobytes())


def broadcast_tree(tree: Any) -> Any:
    """Broadcast arrays from the main process; all trees have the same shapes and types.

    The arrays are sent as bytes, so that they are bit-identical.
    """
    if jax.process_count() == 1:
        return tree
    barrier("broadcast")
    leaves, structure = jax.tree.flatten(tree)
    data = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    received = multihost_utils.broadcast_one_to_all(np.frombuffer(data, np.uint8))
    parts = np.split(np.asarray(received), np.cumsum([leaf.nbytes for leaf in leaves])[:-1])
    shared = [
        np.frombuffer(part.tobytes(), leaf.dtype).reshape(leaf.shape)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shared)


def all_gather(tree: Any) -> Any:
    """Gather the arrays of all processes, stacked by process: [processes, ...]."""
    barrier("all_gather")
    return multihost_utils.process_allgather(tree)
