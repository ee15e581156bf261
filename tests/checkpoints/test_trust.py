"""Trusted and local fields of a checkpoint's config."""

import dataclasses
import sys

import pytest

import evaluate as evaluate_main
from ssd_jax.checkpoints.reader import read_config
from ssd_jax.checkpoints.trust import LOCAL_FIELDS, TRUSTED_FIELDS, with_local_fields
from ssd_jax.cli.run import run_main
from ssd_jax.cli.train import TrainArgs, _base_config
from ssd_jax.config import Config, to_json
from tests.runs import write_run
from tests.tiny import TINY, change

FOREIGN = change(
    TINY,
    model={"classes": ("a", "b"), "init_from": "/foreign/run"},
    data={"num_workers": 1000, "class_file": "/foreign/classes.txt"},
    runtime={"compilation_cache_dir": "/foreign/cache"},
)


def names(fields):
    return sorted(f"{section}.{name}" for section in fields for name in fields[section])


def test_every_config_field_is_in_exactly_one_list():
    expected = [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
    ]
    assert sorted(names(LOCAL_FIELDS) + names(TRUSTED_FIELDS)) == sorted(expected)


def test_compilation_cache_is_local():
    assert "runtime.compilation_cache_dir" in names(LOCAL_FIELDS)


def test_with_local_fields_resets_local_fields_only():
    config = with_local_fields(FOREIGN)
    for section, fields in LOCAL_FIELDS.items():
        for name in fields:
            assert getattr(getattr(config, section), name) == getattr(
                getattr(Config(), section), name
            )
    for section, fields in TRUSTED_FIELDS.items():
        for name in fields:
            assert getattr(getattr(config, section), name) == getattr(
                getattr(FOREIGN, section), name
            )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trust") / "run", FOREIGN)


def test_read_config_resets_local_fields(run):
    assert read_config(run / "checkpoints/0") == with_local_fields(FOREIGN)
    assert "/foreign" not in to_json(read_config(run / "checkpoints/0"))


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], Config().runtime.compilation_cache_dir),
        (["--runtime.compilation-cache-dir", "cache"], "cache"),
    ],
)
def test_evaluate_uses_the_local_compilation_cache(run, monkeypatch, arguments, folder):
    used = []

    def use(folder):
        used.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("ssd_jax.evaluation.checkpoints.use_compilation_cache", use)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", str(run), *arguments])
    assert run_main(evaluate_main.main) == 130
    assert used == [folder]


def test_resume_keeps_every_field_but_the_compilation_cache(run):
    config = _base_config(TrainArgs(resume=True, workdir=str(run)))
    assert config == change(
        FOREIGN, runtime={"compilation_cache_dir": Config().runtime.compilation_cache_dir}
    )
