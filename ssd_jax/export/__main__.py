"""A trained network as a file that other runtimes load, checked in its own runtime.

python -m ssd_jax.export --checkpoint runs/NAME --to onnx --out ssd.onnx
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_jax import __version__
from ssd_jax.cli import Parser, run_main
from ssd_jax.config import ConfigError
from ssd_jax.io import atomic_write, exists

if TYPE_CHECKING:
    from ssd_jax.export.network import Network

Writer = Callable[["Network", Path, int | None], None]


@dataclass(frozen=True)
class ExportFormat:
    """A kind of file."""

    writer: tuple[str, str]
    """Module of this package and function that write it."""
    needs: tuple[str, ...]
    """What must be installed to write it and to read it."""
    extra: str
    suppressed: bool = True
    """Suppression is inside; else the file gives the boxes and scores of all priors."""


FORMS = {
    "stablehlo": ExportFormat(("stablehlo", "write"), ("flatbuffers",), "export"),
    "onnx": ExportFormat(("onnx_graph", "write"), ("onnx", "onnxruntime"), "export"),
    "savedmodel": ExportFormat(
        ("tensorflow_graph", "write_saved_model"), ("tensorflow",), "export-tensorflow"
    ),
    "tflite": ExportFormat(
        ("tensorflow_graph", "write_litert"),
        ("tensorflow", "ai_edge_litert"),
        "export-tensorflow",
        suppressed=False,
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, write, check."""
    own = _parse(arguments)
    form = FORMS[own.to]
    for name in form.needs:
        try:
            import_module(name)
        except ImportError:
            raise ConfigError(
                f"--to {own.to} needs {name}; pip install 'ssd_jax[{form.extra}]'"
            ) from None
    # A name that Python can import.
    stem = re.sub(r"\W", "_", own.out.name)
    about, module = own.out.with_name(f"{stem}.json"), own.out.with_name(f"{stem}.py")
    for path in (own.out, about, module):
        if exists(path):
            raise ConfigError(f"--out: {path} exists; name a new file")

    from ssd_jax.data.errors import DataError
    from ssd_jax.export.check import check
    from ssd_jax.export.network import Network

    network = Network.from_checkpoint(own.checkpoint, own.score_threshold, best=own.best)
    writer: Writer = getattr(import_module(f"ssd_jax.export.{form.writer[0]}"), form.writer[1])
    part = own.out.with_name(f".{own.out.name}.{os.getpid()}.part")
    about_part = part.with_name(f"{part.name}.json")
    try:
        own.out.parent.mkdir(parents=True, exist_ok=True)
        writer(network, part, own.batch)
        about_part.write_text(_about(network, own, form, part.name), "utf-8")
        # The file counts only once its own runtime has given what the network gives.
        print(check(network, about_part, own.check), flush=True)
        part.replace(own.out)
        atomic_write(module, (Path(__file__).parent / "standalone.py").read_bytes())
        atomic_write(about, _about(network, own, form, own.out.name).encode())
    except OSError as error:
        raise ConfigError(f"--out: {own.out} cannot be written: {error}") from None
    except DataError as error:
        raise ConfigError(f"--check: {error.finding.message}") from None
    finally:
        for path in (part, about_part):
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()
    print(f"{own.out}; {about.name} says what it takes and gives, {module.name} uses it")


def _about(network: "Network", own: argparse.Namespace, form: ExportFormat, file: str) -> str:
    """What a user of the file has to know, as JSON."""
    config, size = network.config, network.size
    all_priors = "of all priors" if not form.suppressed else "by falling score, then rows of 0"
    corners = "xmin, ymin, xmax, ymax as fractions of the image"
    outputs = {
        "boxes": f"float32 [B, n, 4], {corners}, {all_priors}",
        "scores": f"float32 [B, n], {all_priors}",
        "labels": "int32 [B, n]; k is classes[k - 1], 0 where there is nothing",
        "count": "int32 [B], detections of each image",
    }
    if not form.suppressed:
        outputs = {
            "boxes": outputs["boxes"],
            "scores": "float32 [B, n, C] of background and each class",
        }
    tree = {
        "file": file,
        "form": own.to,
        "checkpoint": network.checkpoint.name,
        "classes": config.model.classes,
        "input": {
            "name": "images",
            "type": "uint8",
            "shape": [own.batch, size, size, 3],
            "is": "RGB, each image stretched to the square by bilinear interpolation",
        },
        "outputs": outputs,
        "inside": ["mean", "network", "decoding", *["suppression"] * form.suppressed],
        "outside": [*["suppression"] * (not form.suppressed), "resize", "pixels"],
        "suppressed": form.suppressed,
        "suppression": {
            "score_threshold": config.eval.score_threshold,
            "iou_threshold": config.eval.nms_iou_threshold,
            "topk_candidates": config.eval.topk_candidates,
            "detections_per_image": config.eval.detections_per_image,
        },
        "written by": f"ssd_jax {__version__}, jax {version('jax')}",
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m ssd_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="a run's folder or one of its checkpoints")
    add("--best", action="store_true", help="of a run the best checkpoint, not the newest")
    add("--to", choices=list(FORMS), help="file format")
    add("--out", type=Path, metavar="PATH", help="the file; for savedmodel a folder")
    add("--batch", default="free", metavar="N", help="images at once, or free; default: free")
    add(
        "--score-threshold",
        type=float,
        default=0.01,
        metavar="X",
        help="lowest score that the file gives; default: %(default)s",
    )
    add("--check", nargs="+", default=(), metavar="IMAGE", help="default: generated scenes")
    own = parser.parse_args(list(arguments))
    for name, example in (("checkpoint", "runs/quickstart"), ("to", "onnx"), ("out", "ssd.onnx")):
        if getattr(own, name) is None:
            raise ConfigError(f"--{name} is missing; e.g. --{name} {example}")
    if own.batch != "free" and not (own.batch.isdecimal() and int(own.batch) > 0):
        raise ConfigError(f"--batch is {own.batch}; use free or a number from 1 on")
    own.batch = None if own.batch == "free" else int(own.batch)
    if not 0 <= own.score_threshold < 1:
        raise ConfigError(f"--score-threshold is {own.score_threshold}; use 0 to 1")
    return own


if __name__ == "__main__":
    # The compilers of some runtimes write to stderr what only their makers understand.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.argv[0] = "ssd_jax.export"
    raise SystemExit(run_main(main))
