"""What evaluations leave in a folder."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_jax.config import UserError
from ssd_jax.evaluation.dataset import DataSet
from ssd_jax.evaluation.page import write_comparison_page, write_page
from ssd_jax.evaluation.report import compare, without_nan, write_analysis, write_report
from ssd_jax.evaluation.scores import Evaluation
from ssd_jax.runtime import is_first_process
from ssd_jax.visualize import replace_file


class OutputError(UserError):
    """A folder that cannot be written; the message names it and says why."""


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`, whose files go to `path` when the block ends.

    If it ends with an error, nothing is written. Of several processes only the first one writes.

    Raises:
        OutputError: an OSError occurred in the block, or the files cannot be moved.
    """
    if not is_first_process():
        yield path
        return
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        path.mkdir(exist_ok=True)
        for file in part.iterdir():
            target = path / file.name
            if target.is_dir():
                shutil.rmtree(target)
            file.rename(target)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({_reason(error)}); make room or fix the permissions"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).removeprefix("cannot write the file: ")


def write_evaluation(
    out_dir: Path,
    evaluation: Evaluation,
    data: DataSet,
    *,
    extra: Mapping[str, Any],
    facts: Sequence[str] = (),
    page: bool = True,
    images: int = 8,
) -> None:
    """Write an evaluation to a folder, which is made.

    That is metrics.json with `extra` in it (see `write_report`) and, with `page`, report.html, its
    plots/*.svg and analysis.json (see `write_page`, `write_analysis`). Raises OSError where it
    cannot write.
    """
    write_report(evaluation.results, out_dir, extra)
    if page:
        path = out_dir / "analysis.json"
        write_analysis(path, evaluation.analysis, data.classes, data.image_names)
        write_page(out_dir / "report.html", evaluation, data, facts=facts, images=images)


def write_comparison(
    out_dir: Path,
    a: Evaluation,
    b: Evaluation,
    data: DataSet,
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
    text = json.dumps(without_nan(tree), indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(out_dir / "comparison.json", f"{text}\n".encode())
    write_comparison_page(out_dir / "comparison.html", a, b, data, facts=facts, images=images)
