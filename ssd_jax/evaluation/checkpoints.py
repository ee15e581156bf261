"""Evaluation of checkpoints: restore them, evaluate them on one source, compare two."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ssd_jax.checkpoints.reader import checkpoint_step
from ssd_jax.config import Config
from ssd_jax.data.sources import open_source
from ssd_jax.distributed import is_main_process, use_compilation_cache
from ssd_jax.evaluation.evaluate import evaluate_source
from ssd_jax.evaluation.ground_truth import load_ground_truth
from ssd_jax.evaluation.metrics.evaluation import Evaluation
from ssd_jax.evaluation.report.console import print_comparison
from ssd_jax.evaluation.report.output_dir import staged_on_main_process, write_comparison
from ssd_jax.inference.detect import DetectFn
from ssd_jax.io import is_file
from ssd_jax.kernels.conv2d import set_cpu_conv
from ssd_jax.weights.trained import restore_trained


def default_out_dir(checkpoint: Path) -> Path:
    """Return the output folder of an evaluation: eval/STEP in the run, or eval/NAME of a file."""
    if is_file(checkpoint):
        return Path("eval", checkpoint.stem)
    return checkpoint.parent.parent / "eval" / checkpoint.name


def evaluate_checkpoints(
    checkpoints: Mapping[str, tuple[Path, Config]],
    out_dir: Path,
    *,
    console: Console,
    save_detections: bool = False,
) -> list[Evaluation]:
    """Evaluate one checkpoint, or two and compare them, and write the output files together.

    Args:
        checkpoints: each result of `find_trained` with its config, by the subfolder of its files.
            The first config selects the source and the settings of the process.
        out_dir: folder of the subfolders and of the comparison, see `write_comparison`.
        console: prints the tables.
        save_detections: also write the detections, see `evaluate_source`.

    Raises:
        UserError: a checkpoint or the source cannot be read, or the files cannot be written.
    """
    config = next(iter(checkpoints.values()))[1]
    use_compilation_cache(config.runtime.compilation_cache_dir)
    set_cpu_conv(config.runtime.cpu_conv)
    source = open_source(config.data, config.data.eval_split, config.model.classes)
    evaluations = []
    # One process writes.
    with staged_on_main_process(out_dir) as staged_dir:
        # A checkpoint that cannot be restored is reported before anything is detected.
        models = [restore_trained(*each) for each in checkpoints.values()]
        for (part, (path, each)), (model, variables) in zip(
            checkpoints.items(), models, strict=True
        ):
            step = checkpoint_step(path)
            evaluation = evaluate_source(
                DetectFn(model, each),
                variables,
                source,
                each,
                out_dir=staged_dir / part,
                console=console,
                name=_name(path),
                extra={} if step is None else {"step": step},
                save_detections=save_detections,
            )
            evaluations.append(evaluation)
        if len(evaluations) == 2 and is_main_process():
            a, b = evaluations
            images = config.eval.num_report_images
            write_comparison(staged_dir, a, b, load_ground_truth(source), images=images)
            print_comparison(a, b, console)
    return evaluations


def _name(checkpoint: Path) -> str:
    """Return the name of a checkpoint in reports: its run and step, or its folder or file."""
    path = checkpoint.absolute()
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}, step {path.name}"
    return path.name
