"""Which fields of a checkpoint's config count, and which this machine decides."""

import dataclasses
import sys

import pytest

import evaluate as evaluate_main
import train as train_main
from ssd_jax.checkpoints.reader import read_config
from ssd_jax.cli import run_main
from ssd_jax.config import Config, to_json
from ssd_jax.trust import LOCAL_FIELDS, TRUSTED_FIELDS, with_local_fields
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


def test_every_field_is_in_one_of_the_lists():
    every = [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
    ]
    assert sorted(names(LOCAL_FIELDS) + names(TRUSTED_FIELDS)) == sorted(every)


def test_what_runs_code_is_never_trusted():
    assert "runtime.compilation_cache_dir" in names(LOCAL_FIELDS)


def test_local_fields_are_this_machine_s_and_no_other_changes():
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


def test_a_checkpoint_s_config_has_none_of_them(run):
    assert read_config(run / "checkpoints/0") == with_local_fields(FOREIGN)
    assert "/foreign" not in to_json(read_config(run / "checkpoints/0"))


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], Config().runtime.compilation_cache_dir),
        (["--runtime.compilation-cache-dir", "mine"], "mine"),
    ],
)
def test_the_compile_cache_of_evaluate(run, monkeypatch, arguments, folder):
    used = []

    def use(folder):
        used.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("ssd_jax.distributed.use_compilation_cache", use)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", str(run), *arguments])
    assert run_main(evaluate_main.main) == 130
    assert used == [folder]


def test_a_run_to_go_on_with_keeps_all_but_its_cache(run):
    own = train_main.argparse.Namespace(config=None, resume=True, workdir=run)
    config = train_main._base_config(own)
    assert config == change(
        FOREIGN, runtime={"compilation_cache_dir": Config().runtime.compilation_cache_dir}
    )
