"""What evaluations leave in a folder."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_jax.config import UserError
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.page import write_comparison_page, write_html
from ssd_jax.evaluation.report import (
    compare,
    means,
    to_json,
    without_nan,
    write_analysis,
    write_report,
)
from ssd_jax.evaluation.scores import Evaluation
from ssd_jax.io import atomic_write, exists


class OutputError(UserError):
    """A folder that cannot be written; the message names it and says why."""


@contextlib.contextmanager
def staged(out_dir: Path) -> Iterator[Path]:
    """Yield a new folder whose files move to `out_dir` together, once all are written.

    The folder is made at once, so that a place that cannot be written is found before any work.
    After an error nothing is left of it, and files in `out_dir` are as they were.

    Raises:
        OutputError: a file cannot be written. Other OSErrors of the work, which name a file
            elsewhere, pass.
    """
    target = out_dir.expanduser().absolute()
    new = [path for path in (target, *target.parents) if not exists(path)]
    # Inside a folder that exists: the one around it may be read-only.
    name = f".{target.name}.{os.getpid()}.part"
    part = target.with_name(name) if new else target / name
    try:
        part.mkdir(parents=True)
        yield part
        if not target.exists():
            part.rename(target)
            return
        for file in sorted(path for path in part.rglob("*") if path.is_file()):
            place = target / file.relative_to(part)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
    except OSError as error:
        # A full disk is reported without a name.
        if error.filename is not None and not any(
            Path(str(error.filename)).is_relative_to(folder) for folder in (part, target, *new)
        ):
            raise
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(
            f"the results cannot be written to {out_dir} ({why}); make room, fix the permissions, "
            "or name another folder"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for path in new:  # the ones that are not empty stay
            with contextlib.suppress(OSError):
                path.rmdir()


def staged_by_first(out_dir: Path) -> contextlib.AbstractContextManager[Path]:
    """`staged` in the process that writes files; the others get `out_dir` and write nothing."""
    from ssd_jax.distributed import is_main_process  # JAX, which scoring files does without

    return staged(out_dir) if is_main_process() else contextlib.nullcontext(out_dir)


def write_evaluation(
    out_dir: Path,
    evaluation: Evaluation,
    data: EvaluationData,
    *,
    extra: Mapping[str, Any],
    facts: Sequence[str] = (),
    page: bool = True,
    images: int = 8,
) -> None:
    """Write an evaluation to a folder, which is made.

    That is metrics.json with `extra` and the baseline in it (see `write_report`) and, with `page`,
    report.html, its plots/*.svg and analysis.json (see `write_html`, `write_analysis`). Raises
    OSError where it cannot write.
    """
    baseline = {"baseline": means(evaluation.baseline)} if evaluation.baseline else {}
    write_report(evaluation.results, out_dir, {**extra, **baseline})
    if page:
        path = out_dir / "analysis.json"
        write_analysis(path, evaluation.analysis, data.classes, data.image_names)
        write_html(out_dir / "report.html", evaluation, data, facts=facts, images=images)


def write_comparison(
    out_dir: Path,
    a: Evaluation,
    b: Evaluation,
    data: EvaluationData,
    *,
    facts: Sequence[str] = (),
    images: int = 8,
) -> None:
    """Write two evaluations of a data set side by side to a folder, which is made.

    That is comparison.json with the figures of both and comparison.html with its plots/*.svg.
    Raises OSError where it cannot write.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    tree = {"a": a.name, "b": b.name, **compare(a.results, b.results)}
    atomic_write(out_dir / "comparison.json", to_json(without_nan(tree), indent=2))
    write_comparison_page(out_dir / "comparison.html", a, b, data, facts=facts, images=images)
