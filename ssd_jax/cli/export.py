"""Command that exports a trained network to a file for other runtimes."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tyro import conf

from ssd_jax import __version__
from ssd_jax.cli.arguments import Args, Checkpoint, Flag, parse_args
from ssd_jax.config import ConfigError, Range
from ssd_jax.io import atomic_write, exists

if TYPE_CHECKING:
    from ssd_jax.export.network import Network

Writer = Callable[["Network", Path, int | None], None]


@dataclass(frozen=True)
class ExportFormat:
    """File format of a network."""

    writer: tuple[str, str]
    """Module of ssd_jax.export and its function that writes the file."""
    packages: tuple[str, ...]
    """Packages that write and read the file."""
    extra: str
    """Extra of ssd_jax that installs them."""
    suppressed: bool = True
    """Suppression is inside; else the file gives the boxes and scores of all priors."""


FORMATS = {
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


@dataclass(frozen=True, kw_only=True)
class ExportArgs(Args):
    """Export a trained network to a file for other runtimes, and check it in its own runtime.

    Example: ssd-jax export --checkpoint runs/NAME --to onnx --out ssd.onnx
    """

    main_flag: ClassVar[str] = "--checkpoint"

    checkpoint: Checkpoint
    best: Flag = False
    """Use the run's best checkpoint instead of its newest."""
    to: Literal["stablehlo", "onnx", "savedmodel", "tflite"]
    """File format, e.g. onnx."""
    out: Path
    """New file, e.g. ssd.onnx; for savedmodel a folder."""
    batch: Annotated[str, conf.arg(metavar="N")] = "free"
    """Images in a batch; free: any number."""
    score_threshold: Annotated[float, Range(0, 1, below=True)] = 0.01
    """Lowest score of the detections."""
    check: Annotated[tuple[str, ...], conf.arg(metavar="IMAGE [IMAGE ...]")] = ()
    """Images to check the file with; default: generated scenes."""


def main(arguments: Sequence[str]) -> None:
    """Export a trained network to a file for other runtimes."""
    args = parse_args(ExportArgs, arguments)
    # The compilers of some runtimes write to stderr what only their makers understand.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.batch != "free" and not (args.batch.isdecimal() and int(args.batch) > 0):
        raise ConfigError(f"--batch is {args.batch}; use free or a number of at least 1")
    batch = None if args.batch == "free" else int(args.batch)
    format_ = FORMATS[args.to]
    for name in format_.packages:
        try:
            import_module(name)
        except ImportError:
            raise ConfigError(
                f"--to {args.to} needs {name}; pip install 'ssd_jax[{format_.extra}]'"
            ) from None
    # A name that Python can import.
    stem = re.sub(r"\W", "_", args.out.name)
    description, module = args.out.with_name(f"{stem}.json"), args.out.with_name(f"{stem}.py")
    for path in (args.out, description, module):
        if exists(path):
            raise ConfigError(f"--out: {path} exists; name a new file")

    from ssd_jax.data.errors import DataError
    from ssd_jax.export import standalone
    from ssd_jax.export.check import check
    from ssd_jax.export.network import Network

    network = Network.from_checkpoint(args.checkpoint, args.score_threshold, best=args.best)
    writer: Writer = getattr(
        import_module(f"ssd_jax.export.{format_.writer[0]}"), format_.writer[1]
    )
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".export-") as folder:
            part = Path(folder) / args.out.name
            writer(network, part, batch)
            text = _describe(network, args.to, batch, part.name)
            checked = part.with_name(description.name)
            checked.write_text(text, "utf-8")
            # The file is kept only if its own runtime reproduces the detections of the network.
            print(check(network, checked, args.check), flush=True)
            part.replace(args.out)
        atomic_write(module, Path(standalone.__file__).read_bytes())
        atomic_write(description, text.encode())
    except OSError as error:
        raise ConfigError(f"--out: {args.out} cannot be written: {error}") from None
    except DataError as error:
        raise ConfigError(f"--check: {error.finding.message}") from None
    print(f"{args.out}; {description.name} describes its inputs and outputs, {module.name} uses it")


def _describe(network: "Network", name: str, batch: int | None, file: str) -> str:
    """Describe the inputs, the outputs and the origin of a file as JSON."""
    config, size = network.config, network.size
    suppressed = FORMATS[name].suppressed
    all_priors = (
        "of all priors" if not suppressed else "in descending order of score, then rows of 0"
    )
    corners = "xmin, ymin, xmax, ymax as fractions of the image"
    outputs = {
        "boxes": f"float32 [B, n, 4], {corners}, {all_priors}",
        "scores": f"float32 [B, n], {all_priors}",
        "labels": "int32 [B, n]; k is classes[k - 1], 0 in empty rows",
        "count": "int32 [B], detections of each image",
    }
    if not suppressed:
        outputs = {
            "boxes": outputs["boxes"],
            "scores": "float32 [B, n, C] of background and each class",
        }
    tree = {
        "file": file,
        "form": name,
        "checkpoint": network.checkpoint.name,
        "classes": config.model.classes,
        "input": {
            "name": "images",
            "type": "uint8",
            "shape": [batch, size, size, 3],
            "is": "RGB, each image stretched to the square by bilinear interpolation",
        },
        "outputs": outputs,
        "inside": ["mean", "network", "decoding", *["suppression"] * suppressed],
        "outside": [*["suppression"] * (not suppressed), "resize", "pixels"],
        "suppressed": suppressed,
        "suppression": {
            "score_threshold": config.eval.score_threshold,
            "iou_threshold": config.eval.nms_iou_threshold,
            "topk_candidates": config.eval.topk_candidates,
            "detections_per_image": config.eval.detections_per_image,
        },
        "written by": f"ssd_jax {__version__}, jax {version('jax')}",
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
