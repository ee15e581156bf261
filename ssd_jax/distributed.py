"""What a program asks of JAX as a whole: its processes, and a cache of what it compiles.

Every function here does the right thing in a single process too.
"""

import contextlib
import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from ssd_jax.cli import print_error
from ssd_jax.config import COMPILATION_CACHE_DIR, ConfigError, UserError

if TYPE_CHECKING:
    from ssd_jax.cli.arguments import ProcessArgs

_LONGEST_WAIT_MS = 3_600_000


class CollectiveError(UserError):
    """An error that all processes of a run have at the same step."""


class LostPeerError(UserError):
    """Another process of the run, or the way to it, is lost."""

    status = 76
    """Exit status: EX_PROTOCOL of sysexits.h."""


@contextlib.contextmanager
def distributed_context(flags: "ProcessArgs") -> Iterator[None]:
    """The process as one of those that `ssd_jax.cli.arguments.ProcessArgs` names, or the only one.

    To be entered before anything else is asked of JAX. What the flags leave open is found by JAX
    from SLURM, Open MPI, Kubernetes or a TPU pod. An error that only this process has ends it at
    once, with its line: leaving properly would wait for the others, which wait for this one.

    Raises ConfigError where the others are not found or cannot be reached.
    """
    given = (flags.coordinator, flags.processes, flags.process)
    if not flags.distributed and given == (None, None, None):
        yield
        return
    _join(*given, peer_timeout=flags.peer_timeout)
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
                f"process {jax.process_index()}: another process is lost ({line}); go on with "
                "--resume, with as many processes as there are"
            )
        )
    except Exception:  # a fault of the program, which must not leave the others waiting
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def leave(error: UserError) -> NoReturn:
    """End the process at once with the line and the status of `error`; wait for no thread."""
    print_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.status)


def _join(
    coordinator: str | None, processes: int | None, process: int | None, *, peer_timeout: int
) -> None:
    # XLA's own collectives between CPU processes; other platforms do not look at it.
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
    """Keep compiled programs in `folder` for the next start; empty: do not.

    A folder that JAX has been told already, as by JAX_COMPILATION_CACHE_DIR, stays. Programs are
    run when they are loaded, so the folder is one that only its user can write to.

    Raises:
        ConfigError: the folder cannot be made or written; this machine's own is left out then.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    if not folder:
        # Whatever asks for this machine's own folder later leaves it at that.
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
        raise ConfigError(f"the compile cache {folder} cannot be used: {error}") from None
    jax.config.update("jax_compilation_cache_dir", str(path))


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Wait until all processes are here: before they exchange arrays, which bears no long wait.

    On CPUs an exchange fails when a process is 30 s later than another, as after compiling.

    Raises JaxRuntimeError where one is lost, or not here after an hour.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint.multihost import get_barrier_sync_fn

        get_barrier_sync_fn()(key=what, timeout_ms=_LONGEST_WAIT_MS)


def broadcast_json(value: Any) -> Any:
    """The first process's value of JSON, in all of them."""
    if jax.process_count() == 1:
        return value
    barrier("broadcast")
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    mine = data if is_main_process() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())


def broadcast_tree(tree: Any) -> Any:
    """The first process's arrays, in all of them; the trees have the same shapes and types.

    They travel as bytes, so that no number changes by a bit.
    """
    if jax.process_count() == 1:
        return tree
    barrier("broadcast")
    leaves, structure = jax.tree.flatten(tree)
    data = b"".join(np.asarray(leaf).tobytes() for leaf in leaves)
    got = multihost_utils.broadcast_one_to_all(np.frombuffer(data, np.uint8))
    parts = np.split(np.asarray(got), np.cumsum([leaf.nbytes for leaf in leaves])[:-1])
    shared = [
        np.frombuffer(part.tobytes(), leaf.dtype).reshape(leaf.shape)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shared)


def all_gather(tree: Any) -> Any:
    """The arrays of all processes, stacked in their order: [processes, ...], the same in all."""
    barrier("all_gather")
    return multihost_utils.process_allgather(tree)
