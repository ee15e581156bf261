"""Output folder of an evaluation, whose files appear together once all are complete."""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_jax import io
from ssd_jax.config import UserError
from ssd_jax.evaluation.ground_truth import EvaluationData
from ssd_jax.evaluation.metrics.evaluation import Evaluation
from ssd_jax.evaluation.report.html import write_comparison_html, write_html
from ssd_jax.evaluation.report.metrics_json import (
    mean_metrics,
    write_analysis,
    write_comparison_json,
    write_metrics,
)
from ssd_jax.io import exists


class OutputError(UserError):
    """An output folder that cannot be written; the message names it and the reason."""


@contextlib.contextmanager
def staged(out_dir: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `out_dir` together when the block ends.

    The folder is created at once, so that a path that is not writable is reported before any work.
    After an error it is removed, and files in `out_dir` are unchanged; see `ssd_jax.io.staged`.

    Raises:
        OutputError: a file cannot be written. Other OSErrors of the block, which name a file
            elsewhere, pass.
    """
    target = out_dir.expanduser().absolute()
    written = [path for path in (target, *target.parents) if path == target or not exists(path)]
    try:
        if exists(target) and not io.is_dir(target):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        with io.staged(target) as part:
            written.append(part)
            part.mkdir(parents=True)
            yield part
    except OSError as error:
        # A full disk is reported without a file name.
        if error.filename is not None and not any(
            Path(str(error.filename)).is_relative_to(folder) for folder in written
        ):
            raise
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(
            f"cannot write the results to {out_dir} ({why}); free space, fix the permissions, or "
            "use another folder"
        ) from None


def staged_on_main_process(out_dir: Path) -> contextlib.AbstractContextManager[Path]:
    """Call `staged` in the main process; the others get `out_dir` and write nothing."""
    from ssd_jax.distributed import is_main_process  # imports JAX, unused when evaluating files

    return staged(out_dir) if is_main_process() else contextlib.nullcontext(out_dir)


def write_evaluation(
    out_dir: Path,
    evaluation: Evaluation,
    data: EvaluationData,
    *,
    extra: Mapping[str, Any],
    facts: Sequence[str] = (),
    html: bool = True,
    images: int = 8,
) -> None:
    """Write metrics.json and the report of an evaluation to a folder, which is created.

    Args:
        out_dir: the folder.
        evaluation: of `data`.
        data: the ground truth.
        extra: further entries of metrics.json; see `write_metrics`.
        facts: short texts for the head of the report.
        html: also write report.html with its plots/*.svg, and analysis.json; see `write_html`,
            `write_analysis`.
        images: number of worst and of best images in the report.

    Raises:
        OSError: a file cannot be written.
    """
    baseline = {"baseline": mean_metrics(evaluation.baseline)} if evaluation.baseline else {}
    write_metrics(evaluation.results, out_dir, {**extra, **baseline})
    if html:
        path = out_dir / "analysis.json"
        write_analysis(path, evaluation.analysis, data.classes, data.image_names)
        write_html(out_dir / "report.html", evaluation, data, facts=facts, images=images)


def write_comparison(
    out_dir: Path, a: Evaluation, b: Evaluation, data: EvaluationData, *, images: int = 8
) -> None:
    """Write comparison.json and comparison.html to a folder, which is created.

    Args:
        out_dir: the folder.
        a: of `data`.
        b: of `data`, by the same metrics.
        data: the ground truth.
        images: number of images per evaluation on which it is better.

    Raises:
        OSError: a file cannot be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    write_comparison_json(out_dir / "comparison.json", a, b)
    write_comparison_html(out_dir / "comparison.html", a, b, data, images=images)
