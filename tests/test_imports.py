"""Who may import whom: the rooms of the package, held by reading every module's imports."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssd_jax"

COMMANDS = {"export", "plan", "demo"}
ROOMS = {
    "config",
    *("ops", "models", "data", "training", "evaluation"),
    *("cli", "streams", "trust", "guard", "runtime", "detector", "visualize", "benchmark"),
    *("files", "hlo", "cards"),
    *COMMANDS,
}
# What a room may import from the project. A room that is not here fails: decide where it stands.
MAY_IMPORT = {
    # Everything imports the package itself, so this would reach even a worker process.
    "__init__": set(),
    "config": set(),
    "files": set(),
    "streams": set(),
    "trust": {"config"},
    "guard": {"data.errors"},
    "cli": {"config", "streams"},
    "runtime": {"config", "cli"},
    "ops": {"ops"},
    "models": {"config", "files", "trust", "ops", "models"},
    "data": {"config", "files", "data"},
    "training": ROOMS - {"data", "evaluation"},
    "evaluation": {
        *("config", "files", "runtime", "ops", "models", "data", "visualize", "evaluation"),
    },
    # It reads and prepares images by the same functions as the evaluation, and draws what it finds.
    "detector": {
        *("config", "runtime", "ops", "models", "evaluation.detect"),
        *("data.augment", "data.errors", "data.pictures", "visualize"),
    },
    "benchmark": {
        *("config", "ops", "models", "evaluation.detect", "detector", "visualize"),
        *("data.augment", "data.sources"),
    },
    "visualize": {"config", "ops", "models", "evaluation.detect"},
    # What the plan is made of: a program's text, and what accelerators can do.
    "hlo": set(),
    "cards": {"config"},
    **{command: (ROOMS - COMMANDS) | {command} for command in COMMANDS},
}
# Commands on data sets: what people run, and no worker process ever imports.
DATA_COMMANDS = {"__main__", "check", "show", "prepare"}
DATA_COMMANDS_MAY_IMPORT = {"cli", "config", "files", "data", "ops", "models", "visualize"}
# The command on weights, python -m ssd_jax.models.weights; nothing imports it.
MODELS_COMMAND = "models/weights.py"
LOOP = "training/loop.py"
STEP = "training/step.py"
LINEN = "training/state.py"
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
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, a.name) for a in node.names if a.name in names)


def within(name, allowed):
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


def check(path, source):
    """What is wrong with a module of the package, at `path` relative to it; one line each."""
    room = Path(path).parts[0].removesuffix(".py")
    if room not in MAY_IMPORT:
        return [f"{path}: {room!r} is no room that tests/test_imports.py knows; add its rule"]
    tree = ast.parse(source)
    command = room == "data" and Path(path).stem in DATA_COMMANDS
    allowed = ROOMS if path == LOOP else MAY_IMPORT[room]
    if command:
        allowed = DATA_COMMANDS_MAY_IMPORT
    if path == MODELS_COMMAND:
        allowed = {"cli", *MAY_IMPORT["models"]}
    wrong = []
    for line, name in imports(tree, path):
        at, top = f"{path}:{line}: imports {name}", name.split(".")[0]
        if top == "ssd_jax":
            inside = name.removeprefix("ssd_jax").lstrip(".")
            if not within(inside, {*allowed, "__version__"}):
                wrong.append(f"{at}; {room} may import {', '.join(sorted(allowed)) or 'nothing'}")
            elif path == "evaluation/voc.py":
                wrong.append(f"{at}; voc.py is NumPy alone")
            elif within(name, {"ssd_jax.models.weights"}):
                wrong.append(f"{at}; a command is imported by nothing")
            elif (
                room == "data"
                and not command
                and within(name, {f"ssd_jax.data.{c}" for c in DATA_COMMANDS})
            ):
                wrong.append(f"{at}; a command is imported by {room}/__main__.py alone")
        elif room == "data" and top in JAX and not command:
            wrong.append(f"{at}; a worker process must not import JAX")
        elif room in ("ops", "visualize") and top == "flax":
            wrong.append(f"{at}; {room} knows no Flax")
        elif within(name, {"flax.linen"}) and room != "models" and path != LINEN:
            wrong.append(f"{at}; Linen stays in models and {LINEN}")
        elif path == "evaluation/voc.py" and top not in {"numpy", *sys.stdlib_module_names}:
            wrong.append(f"{at}; voc.py is NumPy alone")
    if path != STEP:
        found = uses(tree, {"pmap", *COLLECTIVES})
        wrong += [f"{path}:{line}: uses {name}, which belongs to {STEP}" for line, name in found]
    elif not list(uses(tree, {"pmap"})):
        wrong.append(f"{path}: the place of jax.pmap has none")
    return wrong


MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_keeps_to_its_room(path):
    assert check(path, (PACKAGE / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("config.py", "from ssd_jax.ops import boxes"),
        ("__init__.py", "from ssd_jax.detector import Detector"),
        ("ops/nms.py", "import ssd_jax.config"),
        ("ops/nms.py", "from ..config import EvalConfig"),
        ("ops/nms.py", "from flax import struct"),
        ("ops/nms.py", "import ssd_jax"),
        ("ops/losses.py", "import jax\ndef f(x):\n    return jax.lax.psum(x, 'batch')"),
        ("models/ssd.py", "from ssd_jax.data.sources import Example"),
        ("models/restore.py", "from ssd_jax.cli import run_main"),
        ("models/weights.py", "from ssd_jax.data.sources import Example"),
        ("training/loop.py", "from ssd_jax.models.weights import main"),
        ("data/pipeline.py", "def f():\n    import jax.numpy as jnp"),
        ("data/pipeline.py", "from flax import struct"),
        ("data/voc.py", "from ssd_jax.ops.boxes import pairwise_iou"),
        ("data/pipeline.py", "from ssd_jax.data.check import check"),
        ("data/show.py", "from ssd_jax.training.loop import train"),
        ("training/step.py", "import jax\nfrom ssd_jax import data\nf = jax.pmap"),
        ("training/step.py", "import jax"),
        ("training/checkpoint.py", "from ssd_jax.evaluation import voc"),
        ("training/loop.py", "import jax\nf = jax.pmap(abs)"),
        ("training/loop.py", "from jax import pmap"),
        ("training/loop.py", "from flax import linen as nn"),
        ("evaluation/detect.py", "import flax.linen as nn"),
        ("evaluation/detect.py", "from ssd_jax.training.state import TrainState"),
        ("evaluation/voc.py", "import jax.numpy as jnp"),
        ("evaluation/voc.py", "import cv2"),
        ("evaluation/voc.py", "from ssd_jax.config import EvalConfig"),
        ("detector.py", "from ssd_jax.evaluation import report"),
        ("detector.py", "from .training import state"),
        ("detector.py", "from ssd_jax.data.sources import open_source"),
        ("visualize.py", "from ssd_jax.evaluation.detection import x"),
        ("export.py", "from ssd_jax.plan import main"),
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
        ("models/weights.py", "from ssd_jax.cli import run_main"),
        ("data/pipeline.py", "import cv2, grain\nfrom ssd_jax.config import DataConfig"),
        ("data/show.py", "import jax\nfrom ssd_jax.ops.boxes import pairwise_iou"),
        ("training/state.py", "import flax.linen as nn\nfrom ssd_jax.models.ssd import SSD"),
        ("training/step.py", "import jax\nf = jax.pmap(lambda x: jax.lax.psum(x, 'batch'))"),
        (
            "training/loop.py",
            "from ssd_jax.data import pipeline\nfrom ssd_jax.evaluation import voc",
        ),
        ("evaluation/report.py", "import rich\nfrom ssd_jax.visualize import draw_boxes"),
        ("detector.py", "from ssd_jax.evaluation.detect import detect_step"),
        ("detector.py", "from ssd_jax.evaluation import detect"),
        ("detector.py", "from ssd_jax.data.augment import preprocess_eval"),
        ("export.py", "from ssd_jax.detector import Detector"),
    ],
)
def test_what_the_rules_allow_passes(path, source):
    assert check(path, source) == []
