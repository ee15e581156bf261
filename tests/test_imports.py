"""Who may import whom: packages import downwards, held by reading every module's imports."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssd_jax"

# What a package may import from the project, besides itself. A package that is not here fails.
BASE = {"config", "io"}
MAY_IMPORT = {
    # Everything imports the package itself, so this would reach even a worker process.
    "__init__": set(),
    "config": set(),
    "io": set(),
    "streams": set(),
    "trust": {"config"},
    "cli": BASE | {"streams"},
    "distributed": {"config", "cli"},
    "ops": set(),
    "kernels": set(),
    "models": {"config", "ops", "kernels"},
    "checkpoints": BASE | {"distributed", "models", "trust"},
    "weights": BASE | {"models", "checkpoints"},
    "data": BASE,
    "inference": BASE | {"distributed", "ops", "models", "checkpoints", "data"},
    "evaluation": BASE | {"distributed", "ops", "models", "data", "inference"},
    "training": BASE
    | {"distributed", "trust", "ops", "models", "weights", "checkpoints", "inference"},
    "export": BASE | {"cli", "ops", "kernels", "models", "checkpoints", "data", "inference"},
    "estimate": BASE | {"cli", "models", "data", "training"},
    "demo": BASE | {"cli", "distributed", "checkpoints", "data", "inference"},
}
LOOP = "training/loop.py"
STEP = "training/step.py"
LINEN = "training/state.py"
COMMAND = {"cli", "ops", "models", "inference"}
# What single modules may import besides.
MODULES_MAY_IMPORT = {
    # The training run brings everything together.
    LOOP: {"data", "evaluation"},
    # Commands: what people run, and no worker process ever imports.
    "data/__main__.py": COMMAND,
    "data/check.py": COMMAND,
    "data/show.py": COMMAND,
    "data/prepare.py": COMMAND,
    "weights/__main__.py": {"cli"},
    "weights/command.py": {"cli"},
    # The tables that detection fills belong to the metrics.
    "inference/detect.py": {"evaluation.metrics.voc_ap"},
    # The writer saves the training state and the scores in the log.
    "checkpoints/writer.py": {"training.state", "training.metric_writer"},
}
DATA_COMMANDS = {"__main__", "check", "show", "prepare"}
VOC_AP = "evaluation/metrics/voc_ap.py"
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
COLLECTIVES = {"psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute"}


def imports(tree, path):
    """(line, dotted name) of everything imported, names in `from x import name` included."""
    package = ["ssd_jax", *Path(path).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def uses(tree, names):
    """(line, name) of attributes and imports called one of `names`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module != "ssd_jax.distributed":
            yield from ((node.lineno, a.name) for a in node.names if a.name in names)


def within(name, allowed):
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


def check(path, source):
    """List the faults of a module at `path` in the package, one line each."""
    package = Path(path).parts[0].removesuffix(".py")
    if package not in MAY_IMPORT:
        return [f"{path}: {package!r} is no package that tests/test_imports.py knows; add its rule"]
    tree = ast.parse(source)
    command = package == "data" and Path(path).stem in DATA_COMMANDS
    allowed = {package, *MAY_IMPORT[package], *MODULES_MAY_IMPORT.get(path, ())}
    faults = []
    for line, name in imports(tree, path):
        at, top = f"{path}:{line}: imports {name}", name.split(".")[0]
        if top == "ssd_jax":
            inside = name.removeprefix("ssd_jax").lstrip(".")
            if not within(inside, {*allowed, "__version__"}):
                faults.append(f"{at}; it may import {', '.join(sorted(allowed))}")
            elif path == VOC_AP:
                faults.append(f"{at}; {VOC_AP} is NumPy alone")
            elif within(name, {"ssd_jax.weights.command"}) and path != "weights/__main__.py":
                faults.append(f"{at}; a command is imported by nothing")
            elif (
                package == "data"
                and not command
                and within(name, {f"ssd_jax.data.{c}" for c in DATA_COMMANDS})
            ):
                faults.append(f"{at}; a command is imported by {package}/__main__.py alone")
        elif package == "data" and top in JAX and not command:
            faults.append(f"{at}; a worker process must not import JAX")
        elif (package in ("ops", "kernels") or path == "inference/drawing.py") and top == "flax":
            faults.append(f"{at}; it knows no Flax")
        elif within(name, {"flax.linen"}) and package != "models" and path != LINEN:
            faults.append(f"{at}; Linen stays in models and {LINEN}")
        elif path == VOC_AP and top not in {"numpy", *sys.stdlib_module_names}:
            faults.append(f"{at}; {VOC_AP} is NumPy alone")
    if path != STEP:
        found = uses(tree, {"pmap", *COLLECTIVES})
        faults += [f"{path}:{line}: uses {name}, which belongs to {STEP}" for line, name in found]
    elif not list(uses(tree, {"pmap"})):
        faults.append(f"{path}: jax.pmap is not used")
    return faults


MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_to_its_package(path):
    assert check(path, (PACKAGE / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("config.py", "from ssd_jax.ops import boxes"),
        ("io.py", "from ssd_jax.config import UserError"),
        ("__init__.py", "from ssd_jax.inference.detector import Detector"),
        ("ops/nms.py", "import ssd_jax.config"),
        ("ops/nms.py", "from ..config import EvalConfig"),
        ("ops/nms.py", "from flax import struct"),
        ("ops/nms.py", "import ssd_jax"),
        ("ops/losses.py", "import jax\ndef f(x):\n    return jax.lax.psum(x, 'batch')"),
        ("models/ssd.py", "from ssd_jax.data.sources import Example"),
        ("models/ssd.py", "from ssd_jax.checkpoints.reader import read_config"),
        ("checkpoints/reader.py", "from ssd_jax.cli import run_main"),
        ("weights/command.py", "from ssd_jax.data.sources import Example"),
        ("weights/importers.py", "from ssd_jax.cli import run_main"),
        ("weights/importers.py", "from ssd_jax.weights.command import main"),
        ("training/loop.py", "from ssd_jax.weights.command import main"),
        ("data/pipeline.py", "def f():\n    import jax.numpy as jnp"),
        ("data/pipeline.py", "from flax import struct"),
        ("data/formats/voc.py", "from ssd_jax.ops.boxes import pairwise_iou"),
        ("data/pipeline.py", "from ssd_jax.data.check import check"),
        ("data/show.py", "from ssd_jax.training.loop import train"),
        ("training/step.py", "import jax\nfrom ssd_jax import data\nf = jax.pmap"),
        ("training/step.py", "import jax"),
        ("checkpoints/writer.py", "from ssd_jax.evaluation.metrics import voc_ap"),
        ("training/loop.py", "import jax\nf = jax.pmap(abs)"),
        ("training/loop.py", "from jax import pmap"),
        ("training/loop.py", "from flax import linen as nn"),
        ("inference/detect.py", "import flax.linen as nn"),
        ("inference/detect.py", "from ssd_jax.training.state import TrainState"),
        ("inference/detector.py", "from ssd_jax.evaluation import report"),
        ("inference/detector.py", "from ..training import state"),
        ("inference/drawing.py", "from flax import struct"),
        ("kernels/conv2d.py", "from flax import linen as nn"),
        ("kernels/conv2d.py", "from ssd_jax.models.layers import Conv"),
        (VOC_AP, "import jax.numpy as jnp"),
        (VOC_AP, "import cv2"),
        (VOC_AP, "from ssd_jax.evaluation import report"),
        (VOC_AP, "from ssd_jax.config import EvalConfig"),
        ("export/onnx_graph.py", "from ssd_jax.estimate.step_cost import main"),
        ("utils.py", ""),
        ("backbones/resnet.py", ""),
    ],
)
def test_a_planted_violation_is_found(path, source):
    (line,) = check(path, source)
    assert line.startswith(path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "ops/nms.py",
            "import jax\nfrom ssd_jax.ops.boxes import pairwise_iou\nfrom . import boxes",
        ),
        ("models/ssd.py", "from flax import linen as nn\nfrom ssd_jax.config import ModelConfig"),
        ("weights/command.py", "from ssd_jax.cli import run_main"),
        ("data/pipeline.py", "import cv2, grain\nfrom ssd_jax.config import DataConfig"),
        ("data/show.py", "import jax\nfrom ssd_jax.ops.boxes import pairwise_iou"),
        ("training/state.py", "import flax.linen as nn\nfrom ssd_jax.models.ssd import SSD"),
        ("training/step.py", "import jax\nf = jax.pmap(lambda x: jax.lax.psum(x, 'batch'))"),
        (
            "training/loop.py",
            "from ssd_jax.data import pipeline\nfrom ssd_jax.evaluation.metrics import voc_ap",
        ),
        ("evaluation/report.py", "import rich\nfrom ssd_jax.inference.drawing import draw_boxes"),
        ("inference/detector.py", "from ssd_jax.inference.detect import detect_step"),
        ("inference/detector.py", "from ssd_jax.inference import detect"),
        ("inference/detector.py", "from ssd_jax.data.augment import preprocess_eval"),
        ("export/stablehlo.py", "from ssd_jax.inference.detector import Detector"),
    ],
)
def test_what_the_rules_allow_passes(path, source):
    assert check(path, source) == []
