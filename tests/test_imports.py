"""Import rules: packages import downwards, checked on the imports of every module."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssd_jax"

# Modules that a package may import from the project, besides itself.
BASE = {"config", "io", "streams"}
MAY_IMPORT = {
    # Every module imports the package itself, so its imports would reach the worker processes;
    # those for type checkers alone are not counted.
    "__init__": set(),
    "__main__": {"cli"},
    "config": set(),
    "io": set(),
    "streams": {"config"},
    "config_file": {"config", "io"},
    "distributed": BASE,
    "ops": set(),
    "kernels": {"ops"},
    "models": {"config", "ops", "kernels"},
    "checkpoints": BASE | {"distributed", "models"},
    "weights": BASE | {"config_file", "models", "checkpoints"},
    "data": BASE | {"weights.class_names"},
    "inference": BASE
    | {"distributed", "ops", "kernels", "models", "weights", "checkpoints", "data"},
    "evaluation": BASE | {"distributed", "kernels", "weights", "checkpoints", "data", "inference"},
    "training": BASE
    | {"distributed", "ops", "kernels", "models", "weights", "checkpoints"}
    | {"data", "inference", "evaluation"},
    "export": BASE | {"ops", "kernels", "models", "weights", "data", "inference"},
    "estimate": BASE | {"kernels", "models", "data", "training"},
    "demo": BASE | {"weights", "data", "inference"},
    "api": BASE | {"config_file", "distributed", "weights", "evaluation", "training"},
    "cli": BASE
    | {"config_file", "distributed", "ops", "kernels", "models", "weights", "checkpoints", "data"}
    | {"inference", "evaluation", "training", "export", "estimate", "demo"},
}
STEP = "training/step.py"
VOC_AP = "evaluation/metrics/voc_ap.py"
# Pure NumPy, usable without the rest of the project.
METRICS = {f"evaluation/metrics/{name}.py" for name in ("class_metrics", "matching", "voc_ap")}
METRICS |= {"data/tables.py"}
NUMPY_ONLY = {"data.tables", "evaluation.metrics.class_metrics", "evaluation.metrics.matching"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
COLLECTIVES = {"psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute"}


def imports(tree, path):
    """(line, dotted name) of everything imported, names in `from x import name` included."""
    package = ["ssd_jax", *Path(path).parts[:-1]]
    if path == "__init__.py":
        tree = ast.Module([node for node in tree.body if not is_for_type_checkers(node)], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


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
    """List the violations in a module at `path` in the package, one line each."""
    package = Path(path).parts[0].removesuffix(".py")
    if package not in MAY_IMPORT:
        return [f"{path}: {package!r} has no rule; add it to MAY_IMPORT"]
    tree = ast.parse(source)
    allowed = {package, *MAY_IMPORT[package]}
    faults = []
    for line, name in imports(tree, path):
        at, top = f"{path}:{line}: imports {name}", name.split(".")[0]
        if top == "ssd_jax":
            inside = name.removeprefix("ssd_jax").lstrip(".")
            if not within(inside, {*allowed, "__version__"}):
                faults.append(f"{at}; it may import {', '.join(sorted(allowed))}")
            elif path in METRICS and not within(inside, NUMPY_ONLY):
                faults.append(f"{at}; {path} is NumPy only")
        elif package == "data" and top in JAX:
            faults.append(f"{at}; a worker process must not import JAX")
        elif (package in ("ops", "kernels") or path == "inference/drawing.py") and top == "flax":
            faults.append(f"{at}; it must not import Flax")
        elif within(name, {"flax.linen"}) and package != "models":
            faults.append(f"{at}; Linen stays in models")
        elif path in METRICS and top not in {"numpy", *sys.stdlib_module_names}:
            faults.append(f"{at}; {path} is NumPy only")
    if path != STEP:
        names = uses(tree, {"pmap", *COLLECTIVES})
        faults += [f"{path}:{line}: uses {name}, which belongs to {STEP}" for line, name in names]
    elif not list(uses(tree, {"pmap"})):
        faults.append(f"{path}: jax.pmap is not used")
    return faults


MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES)
def test_module_imports_downwards(path):
    assert check(path, (PACKAGE / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("config.py", "from ssd_jax.ops import boxes"),
        ("io.py", "from ssd_jax.config import UserError"),
        ("__init__.py", "from ssd_jax.inference.detector import Detector"),
        ("__init__.py", "if True:\n    from ssd_jax.config import Config"),
        ("__main__.py", "from ssd_jax.config import Config"),
        ("config_file.py", "from ssd_jax.cli.run import run_main"),
        ("api.py", "from ssd_jax.cli.evaluate import main"),
        ("training/loop.py", "from ssd_jax.api import evaluate"),
        ("ops/nms.py", "import ssd_jax.config"),
        ("ops/nms.py", "from ..config import EvalConfig"),
        ("ops/nms.py", "from flax import struct"),
        ("ops/nms.py", "import ssd_jax"),
        ("ops/losses.py", "import jax\ndef f(x):\n    return jax.lax.psum(x, 'batch')"),
        ("models/ssd.py", "from ssd_jax.data.sources import Example"),
        ("models/ssd.py", "from ssd_jax.checkpoints.reader import read_config"),
        ("checkpoints/reader.py", "from ssd_jax.cli.run import run_main"),
        ("weights/importers.py", "from ssd_jax.data.sources import Example"),
        ("weights/importers.py", "from ssd_jax.cli.run import run_main"),
        ("weights/importers.py", "from ssd_jax.cli.weights import main"),
        ("training/loop.py", "from ssd_jax.cli.train import main"),
        ("data/pipeline.py", "def f():\n    import jax.numpy as jnp"),
        ("data/pipeline.py", "from flax import struct"),
        ("data/formats/voc.py", "from ssd_jax.ops.boxes import pairwise_iou"),
        ("data/pipeline.py", "from ssd_jax.cli.check_data import check"),
        ("kernels/nms.py", "from ssd_jax.models.ssd import SSD"),
        ("training/step.py", "import jax\nfrom ssd_jax import export\nf = jax.pmap"),
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
def test_planted_violations_are_detected(path, source):
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
        ("__main__.py", "from ssd_jax.cli.main import run"),
        ("__init__.py", "if TYPE_CHECKING:\n    from ssd_jax.config import Config"),
        ("data/pipeline.py", "import cv2, grain\nfrom ssd_jax.config import DataConfig"),
        ("cli/preview_data.py", "import jax\nfrom ssd_jax.ops.boxes import pairwise_iou"),
        ("training/state.py", "from flax import struct\nfrom ssd_jax.models.ssd import SSD"),
        ("training/step.py", "import jax\nf = jax.pmap(lambda x: jax.lax.psum(x, 'batch'))"),
        (
            "training/loop.py",
            "from ssd_jax.data import pipeline\nfrom ssd_jax.evaluation.metrics import voc_ap",
        ),
        (
            "evaluation/report/console.py",
            "import rich\nfrom ssd_jax.inference import drawing",
        ),
        ("inference/detector.py", "from ssd_jax.inference.detect import detect_step"),
        ("inference/detector.py", "from ssd_jax.inference import detect"),
        ("inference/detector.py", "from ssd_jax.data.augmentation import preprocess_eval"),
        ("export/stablehlo.py", "from ssd_jax.inference.detector import Detector"),
    ],
)
def test_allowed_imports_pass(path, source):
    assert check(path, source) == []
