"""Command lines: help, versions, and errors of one line with exit status 2."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import evaluate as evaluate_main
import predict as predict_main
import train as train_main
from ssd_jax import __version__
from ssd_jax.cli.data import check_data, show_data
from ssd_jax.cli.estimate import main as estimate_main
from ssd_jax.cli.run import run_main
from tests.tiny import TINY, change, write_config_file

ANNOTATION = """<annotation><size><width>8</width><height>8</height></size><object>
<name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def tiny(tmp_path):
    return write_config_file(tmp_path / "tiny.py", TINY)


@pytest.fixture
def failing(monkeypatch, capfd, tmp_path):
    """Runs a main and returns its one line of error."""

    def run(main, *arguments):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", [f"{main.__name__}.py", *map(str, arguments)])
        assert run_main(main.main) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "Traceback" not in err
        after = [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in p.parts]
        assert after == [p for p in before if "__pycache__" not in p.parts]
        return err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.lerning-rate", "3"], "perhaps you meant --optim.learning-rate"),
        (["--train.step", "3"], "unknown argument --train.step; perhaps you meant --train.steps;"),
        (["--train.step=3"], "unknown argument --train.step; perhaps you meant --train.steps;"),
        (["--train.batch-sise", "3"], "perhaps you meant --train.batch-size"),
        (["--batch-size", "3"], "perhaps you meant --train.batch-size or --eval.batch-size"),
        (["--wrkdir", "x"], "unknown argument --wrkdir; perhaps you meant --workdir;"),
        (["--zzz"], "unknown argument --zzz; see --help"),
        (["--train.steps", "4", "runs/x"], "unexpected argument 'runs/x'; take it out"),
        (["runs/x"], "unexpected argument 'runs/x'; take it out"),
        (["--optim.learning-rate", "abc"], "--optim.learning-rate: could not convert"),
        (["--model.dtype", "float16"], "--model.dtype is 'float16'; use one of float32, bfloat16"),
        (["--train.batch-size", "0"], "train.batch_size is 0; use a whole number from 1 to 65,536"),
        (["--train.batch-size", "64"], "train.batch_size is 64 and the dataset has 32 images"),
        (["--train.seed", str(2**64)], "train.seed is 18446744073709551616; use a whole number"),
        (["--model.image-size", "1000000"], "model.image_size is 1000000; use a whole number from"),
        (
            ["--eval.detections-per-image", "1" + "0" * 12],
            "eval.detections_per_image is 1000000000000; use",
        ),
        (
            ["--model.image-mean", "nan", "1", "2"],
            "model.image_mean has nan; use a number from 0 to 255",
        ),
        (["--priors.steps", "1e-300", "8"], "priors.steps has 1e-300; use a number from 0.1 to"),
        (["--optim.grad-clip-norm", "inf"], "optim.grad_clip_norm is inf; use a number from 0 to"),
        (
            ["--train.batch-size", "3"],
            "train.batch_size 3 must be divisible by the 2 devices; try 2",
        ),
        (["--model.image-size", "40"], "model.image_size 40 leaves no cell"),
        (["--data.train-split", "many"], "data.train_split is 'many'"),
        (["--data.max-objects", "1"], "objects and data.max_objects is 1"),
        (["--model.init-from", "none.npz"], "model.init_from: file not found: none.npz"),
    ],
)
def test_invalid_values(tiny, failing, tmp_path, arguments, message):
    if "40" in arguments:
        arguments = [*arguments, "--model.feature-layers", "conv4_3", "conv8_2"]
        arguments += ["--model.extras", "8", "8", "4", "1", "0"]
    err = failing(train_main, "--config", tiny, "--workdir", tmp_path / "run", *arguments)
    assert message in err


def test_words_without_a_flag_suggest_the_main_flag(failing, tmp_path):
    err = failing(train_main, "configs/x.py", "--train.steps", "3")
    assert err.endswith("unexpected argument 'configs/x.py'; write --config configs/x.py\n")
    err = failing(evaluate_main, "runs/x", "--data.root", "x")
    assert err.endswith("unexpected argument 'runs/x'; write --checkpoint runs/x\n")
    for command in (check_data, show_data, estimate_main):
        err = failing(SimpleNamespace(main=command, __name__="main"), "configs/x.py")
        assert err.endswith("unexpected argument 'configs/x.py'; write --config configs/x.py\n")


MAINS = [
    f"cli.{name}"
    for name in (
        "benchmark",
        "data",
        "demo",
        "estimate",
        "evaluate",
        "export",
        "main",
        "predict",
        "train",
        "weights",
    )
]


@pytest.mark.parametrize(
    "main",
    MAINS,
)
def test_version(main, monkeypatch, capfd):
    main = importlib.import_module(f"ssd_jax.{main}")
    monkeypatch.setattr(sys, "argv", ["main", "--version"])
    assert run_main(main.main) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"ssd_jax {__version__} (jax ")
    assert out.count("\n") == 1
    assert err == ""


def test_every_command_is_in_the_version_test():
    package = Path(train_main.__file__).parent / "ssd_jax"
    commands = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "def main(arguments" in path.read_text()
    }
    assert commands == set(MAINS)


def test_invalid_config_files(failing, tmp_path):
    assert f"--config: {tmp_path} is a folder; name a config file" in failing(
        train_main, "--config", tmp_path
    )
    assert "--config: file not found" in failing(train_main, "--config", tmp_path / "none.py")
    assert "--config is missing" in failing(train_main)
    assert "--config needs a value" in failing(train_main, "--config")
    bad = tmp_path / "bad.py"
    bad.write_text("1 / 0")
    assert "fails: ZeroDivisionError" in failing(train_main, "--config", bad)
    bad.write_text("def get_config(): return 3")
    assert "returns 3; it must return a Config" in failing(train_main, "--config", bad)
    assert "no run found in" in failing(train_main, "--resume", "--workdir", tmp_path)


LONG = "x" * 300


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train_main, ["--config", LONG], f"--config: unknown config {LONG}; train"),
        (train_main, ["--resume", "--workdir", LONG], f"--resume: no run found in {LONG}; name"),
        (
            evaluate_main,
            ["--detections", "x", "--annotations", LONG, "--out", "x"],
            f"{LONG} is neither a COCO annotation file nor",
        ),
        (predict_main, ["--checkpoint", "x", LONG], f"file or folder not found: {LONG}"),
    ],
)
def test_names_longer_than_the_file_system_allows(failing, main, arguments, message):
    assert f"{main.__name__}.py: {message}" in failing(main, *arguments)


def test_missing_dataset(failing, tmp_path):
    config = change(TINY, data={"format": "voc", "root": str(tmp_path / "none")})
    path = write_config_file(tmp_path / "voc.py", config)
    err = failing(train_main, "--config", path, "--workdir", tmp_path / "run")
    assert str(tmp_path / "none") in err


def test_class_missing_in_the_config(failing, tmp_path):
    root = tmp_path / "data"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "Annotations/1.xml").write_text(ANNOTATION)
    (root / "JPEGImages/1.jpg").write_bytes(b"")
    (root / "ImageSets/Main/all.txt").write_text("1\n")
    config = change(
        TINY,
        model={"classes": ("cat",)},
        data={"format": "voc", "root": str(root), "train_split": "all", "eval_split": "all"},
    )
    path = write_config_file(tmp_path / "voc.py", config)
    err = failing(train_main, "--config", path, "--workdir", tmp_path / "run")
    assert "1.xml" in err
    assert "dog" in err


def test_missing_checkpoints(failing, tmp_path):
    assert "--checkpoint is missing" in failing(evaluate_main)
    err = failing(evaluate_main, "--checkpoint", tmp_path)
    assert "no checkpoint found in" in err


@pytest.mark.parametrize("main", [train_main, evaluate_main])
def test_help_lists_every_field(main, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    out = " ".join(out.replace("│", " ").split())
    for field in (
        "--model.image-size",
        "--optim.learning-rate",
        "--eval.nms-iou-threshold",
        "(pixels). Range: from 32 to 4,096. (default:",
    ):
        assert field in out


def test_help_and_usage_errors_do_not_import_jax():
    code = """
import sys
from importlib import import_module
from ssd_jax.cli.main import COMMANDS
from ssd_jax.config import ConfigError
for module in (import_module(f"ssd_jax.cli.{name}") for name in COMMANDS):
    for arguments in (["--help"], ["--zzz"]):
        try:
            module.main(arguments)
        except (SystemExit, ConfigError):
            pass
assert not {"jax", "flax", "cv2"} & set(sys.modules)
"""
    root = Path(train_main.__file__).parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)


def test_unknown_subcommands_are_corrected(failing):
    weights = importlib.import_module("ssd_jax.cli.weights")
    assert "unknown command 'imprt'; perhaps you meant import" in failing(weights, "imprt")
    assert "the command is missing; use one of list, download, info, import, export" in failing(
        weights
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score-threshold", "1.5"], "--score-threshold is 1.5; use a number from 0 to 1"),
        (["--batch-size"], "--batch-size needs a value"),
        (["--batch-sizes", "1,2"], "--batch-sizes belongs to ssd-jax benchmark"),
        (["--benchmark", "--xml"], "--benchmark is a command, ssd-jax benchmark"),
        (["--chekpoint", "x"], "unknown argument --chekpoint; perhaps you meant --checkpoint"),
    ],
)
def test_errors_in_the_arguments_of_a_command(failing, arguments, message):
    assert message in failing(predict_main, "--checkpoint", "x", "x.png", *arguments)
    assert "--checkpoint is missing (Run, e.g. runs/quickstart" in failing(predict_main, "x.png")
