"""Random damage to a checkpoint is refused in one line, or leaves results bit-identical."""

import contextlib
import dataclasses
import functools
import json
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

import evaluate
import predict
from ssd_jax.checkpoints.writer import CheckpointManager
from ssd_jax.cli import export
from ssd_jax.config import UserError, to_json
from ssd_jax.inference.drawing import save_image
from ssd_jax.models.ssd import make_model, variable_shapes
from ssd_jax.training.metric_writer import read_scores
from ssd_jax.training.optimizer import make_optimizer
from ssd_jax.training.state import TrainState
from tests.tiny import TINY, change

pytestmark = pytest.mark.adversarial

CASES = 1000
PARTS = 4
CONFIG = change(
    TINY,
    model={
        "classes": ("circle", "square", "triangle", "star"),
        "width_multiplier": 0.0625,
        "feature_layers": ("conv4_3",),
        "batch_norm": False,
    },
    priors={"sizes": (16, 32), "aspect_ratios": ((2,),)},
)
KINDS = {"bit": 0.7, "truncated": 0.15, "bytes": 0.06, "zeros": 0.04, "emptied": 0.025}
KINDS["deleted"] = 1 - sum(KINDS.values())


class Loaded(Exception):
    """A command has read the checkpoint; raised instead of using it."""


@functools.cache
def make_state():
    """Make a training state of CONFIG at step 5 with random values."""
    model = make_model(CONFIG.model, CONFIG.priors)
    params = variable_shapes(model)["params"]
    rng = np.random.default_rng(0)

    def draw(tree):
        return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(x.dtype), tree)

    params = draw(params)
    return TrainState(
        step=np.int32(5),
        params=params,
        batch_stats={},
        opt_state=draw(jax.eval_shape(make_optimizer(CONFIG.optim).init, params)),
        ema={},
        nonfinite_steps=np.int32(0),
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    with contextlib.closing(CheckpointManager(folder, CONFIG.train)) as checkpoints:
        checkpoints.open()
        checkpoints.add_score(5, 0.5)
        checkpoints.save(make_state(), {"data": {"position": 5}}, CONFIG)
    (folder / "config.json").write_text(to_json(CONFIG))
    line = {"step": 5, "kind": "eval", "mAP": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    save_image(folder / "image.png", np.zeros((40, 40, 3), np.uint8))
    return folder


@pytest.fixture
def stopped(monkeypatch):
    """Make commands raise Loaded with the variables and the config instead of using them."""

    def stop(*args, **_):
        raise Loaded(args)

    def init(self, *args, **_):
        raise Loaded(args)

    shapes = {}
    original_eval_shape = jax.eval_shape

    def eval_shape(function, *args):
        """Trace each network only once, because tracing takes longest."""
        model = function.__self__
        if model not in shapes:
            shapes[model] = original_eval_shape(function, *args)
        return shapes[model]

    make_state()
    monkeypatch.setattr("ssd_jax.inference.detector.Detector.__init__", init)
    monkeypatch.setattr("ssd_jax.evaluation.checkpoints.evaluate_source", stop)
    monkeypatch.setattr("ssd_jax.inference.detect.DetectFn", lambda *_: None)
    monkeypatch.setattr("ssd_jax.export.network.Network.__init__", init)
    monkeypatch.setattr(jax, "eval_shape", eval_shape)


def loaded_values(main, *arguments):
    """Run a command until it has read the checkpoint; return the values read, as bytes."""
    try:
        main([str(a) for a in arguments])
    except Loaded as loaded:
        (args,) = loaded.args
        return [
            repr(a) if dataclasses.is_dataclass(a) else as_bytes(a)
            for a in args
            if isinstance(a, dict) or dataclasses.is_dataclass(a)
        ]
    raise AssertionError("the command ended without using the checkpoint")


def as_bytes(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf.dtype, leaf.tobytes()) for path, leaf in leaves]


def resume(run, *, save):
    """Restore the state as `train.py --resume` does; with `save`, also save and restore it."""
    checkpoints = CheckpointManager(run, CONFIG.train)
    state, run_progress, notes = checkpoints.restore(make_state())
    assert notes == []
    if save:
        later = state.replace(step=np.int32(6))
        with contextlib.closing(checkpoints):
            checkpoints.open(read_scores(run, CONFIG.train.best_metric))
            assert checkpoints.best == (5, 0.5)
            checkpoints.save(state, run_progress, CONFIG)
            checkpoints.save(later, run_progress, CONFIG)
        again, _, notes = CheckpointManager(run, CONFIG.train).restore(make_state())
        assert notes == []
        assert as_bytes(again) == as_bytes(later)
    return as_bytes(state), run_progress


def readers(run, *, save):
    """Functions that return the values which each reader restores, by name."""
    checkpoint, out = run / "checkpoints/5", run / "out"
    return {
        "predict": lambda: loaded_values(
            predict.main, run / "image.png", "--checkpoint", checkpoint, "--out", out
        ),
        "evaluate": lambda: loaded_values(evaluate.main, "--checkpoint", checkpoint, "--out", out),
        "export": lambda: loaded_values(
            *(export.main, "--checkpoint", checkpoint, "--to", "stablehlo", "--out", out / "x")
        ),
        "resume": lambda: resume(run, save=save),
    }


def damage(file, rng):
    """Damage a file randomly; return the kind of damage."""
    data = bytearray(file.read_bytes())
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "deleted":
        file.unlink()
        return kind
    start = int(rng.integers(len(data)))
    end = int(rng.integers(start, len(data))) + 1
    if kind == "bit":
        data[start] ^= 1 << int(rng.integers(8))
    elif kind == "truncated":
        del data[start:]
    elif kind == "bytes":
        data[start:end] = rng.bytes(end - start)
    elif kind == "zeros":
        data[start:end] = bytes(end - start)
    else:
        data.clear()
    file.write_bytes(data)
    return kind


@pytest.mark.parametrize("part", range(PARTS))
def test_damage_is_refused_in_one_line_or_harmless(workdir, tmp_path, stopped, capfd, part):
    """Check resume and, alternately, one of the commands, which share a reader, for each case.

    Half of the cases choose a file in proportion to its size, half with equal probability.
    """
    rng = np.random.default_rng(part)
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    expected = {name: read() for name, read in readers(run, save=True).items()}
    checkpoint = workdir / "checkpoints/5"
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in files], float)
    uniform = np.full(len(files), 1 / len(files))
    counts, harmless = Counter(), Counter()
    for case in range(CASES // PARTS):
        shutil.rmtree(run)
        shutil.copytree(workdir, run)
        file = files[rng.choice(len(files), p=uniform if case % 2 else sizes / sizes.sum())]
        name = file.relative_to(checkpoint)
        target = run / "checkpoints/5" / name
        kind = damage(target, rng)
        same = target.exists() and target.read_bytes() == file.read_bytes()
        # Orbax reads its metadata files again when saving.
        save = name.name in ("_CHECKPOINT_METADATA", "commit_success.txt")
        reading = readers(run, save=save)
        for reader in (("predict", "evaluate", "export")[case % 3], "resume"):
            case_name = f"case {case}: {kind}, {name}, {reader}"
            error = None
            try:
                assert reading[reader]() == expected[reader]
            except Exception as raised:
                raised.add_note(case_name)
                if not isinstance(raised, UserError):
                    raise
                error = raised
            if error is None:
                outcome = "untouched" if same else "harmless"
                harmless["data" if name.parent.name == "d" else str(name)] += not same
            else:
                outcome = "refused"
                assert error.status == 2, case_name
                assert "checkpoints/5 is damaged (" in str(error), case_name
                assert str(error).isprintable(), case_name
                assert not same, case_name
            assert not (run / "out").exists(), case_name
            counts[reader, outcome] += 1
    assert capfd.readouterr().err == ""
    with capfd.disabled():
        print(f"\n{dict(sorted(counts.items()))}\nharmless: {dict(sorted(harmless.items()))}")
