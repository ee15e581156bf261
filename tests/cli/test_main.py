"""The program ssd-jax: commands, configs by name, help and start-up."""

import os
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from ssd_jax.cli import completion
from ssd_jax.cli.main import COMMANDS, main, run
from ssd_jax.cli.train import main as train
from ssd_jax.config import ConfigError, from_json
from ssd_jax.config_file import describe_config, find_configs, load_config

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """Runs ssd-jax in an empty folder; returns its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/ssd-jax", *arguments])
        status = run()
        assert list(tmp_path.iterdir()) == []
        return status, *capfd.readouterr()

    return call


def test_help_is_one_screen_with_every_command(program):
    status, out, err = program("--help")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "usage: ssd-jax COMMAND [--help] ..."
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)
    assert len(lines) <= 24
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("name", COMMANDS)
def test_descriptions_and_help_of_the_commands(program, name):
    module = import_module(f"ssd_jax.cli.{name}")
    assert module.main.__doc__.splitlines()[0] == COMMANDS[name].__doc__
    status, out, err = program(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: ssd-jax {name} ")


def test_every_command_module_is_a_command():
    modules = (ROOT / "ssd_jax/cli").glob("*.py")
    with_main = {path.stem for path in modules if "def main(arguments" in path.read_text()}
    assert with_main - {"main"} == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ssd-jax: the command is missing; use one of train, evaluate, "),
        (["traiin"], "ssd-jax: unknown command 'traiin'; perhaps you meant train; see --help"),
        (["data", "checkx"], "ssd-jax data: unknown command 'checkx'; perhaps you meant check"),
        (["train", "--stepz", "3"], "ssd-jax train: unknown argument --stepz; perhaps you meant"),
        (["train", "--config", "quikstart"], "unknown config quikstart; perhaps you meant quick"),
        (["train", "--config", "conf/quickstart.py"], "file not found: conf/quickstart.py; perh"),
        (["estimate", "--config", "zzz"], "--config: unknown config zzz; train --list-configs"),
        (["data", "show", "--config", "zzz"], "ssd-jax data: --config: unknown config zzz;"),
        (["predict", "--benchmark"], "--benchmark is a command, ssd-jax benchmark"),
        (["benchmark", "--xml"], "--xml belongs to ssd-jax predict"),
    ],
)
def test_errors_are_one_line_with_the_name_of_the_command(program, arguments, message):
    status, out, err = program(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ssd-jax")
    assert err.count("\n") == 1
    assert message in err


def test_usage_of_subcommands_has_the_whole_name(program):
    status, out, _ = program("data", "check", "--help")
    assert status == 0
    assert out.startswith("usage: ssd-jax data check ")


def test_version(program):
    assert program("--version")[1].startswith("ssd_jax ")


def test_module_and_script_run_the_program():
    command = [sys.executable, "-m", "ssd_jax", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m ssd_jax COMMAND")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["ssd-jax"].partition(":")
    assert getattr(import_module(module), function) is run


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"tyro", "numpy", "jax"}),
        (["traiin"], {"tyro", "numpy", "jax"}),
        (["train", "--stepz", "3"], {"numpy", "jax", "rich"}),
        (["predict", "--zzz"], {"numpy", "jax", "cv2"}),
    ],
)
def test_usage_errors_and_help_import_little(arguments, absent):
    """JAX alone takes over a second."""
    code = "import sys\nfrom ssd_jax.cli.main import run\nrun()\nprint(*sys.modules)"
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert not absent & set(done.stdout.split())


def test_configs_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_config(ROOT / "configs/quickstart.py")
    assert load_config("quickstart") == expected
    # One that imports its neighbours.
    assert load_config("ssd512_coco").model.image_size == 512
    # A folder of that name, e.g. of a run, does not hide the config; a file does.
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart") == expected
    (tmp_path / "bccd").write_text("")
    with pytest.raises(ConfigError, match="bccd is not a Python file"):
        load_config("bccd")


def test_list_configs(program):
    status, out, _ = program("train", "--list-configs")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(p.stem for p in find_configs().values())
    assert set(find_configs()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    for line, path in zip(lines, find_configs().values(), strict=True):
        assert line.endswith(f"  {describe_config(path)}")
        assert describe_config(path).startswith("Train ")


def test_print_config(program):
    status, out, _ = program(
        *("train", "--config", "quickstart", "--train.steps", "70", "--print-config")
    )
    assert status == 0
    config = from_json(out)
    assert config.train.steps == 70
    assert config.model == load_config("quickstart").model


def test_print_config_of_an_invalid_config_is_an_error(program):
    arguments = ["train", "--config", "quickstart", "--train.steps", "3", "--print-config"]
    status, out, err = program(*arguments)
    assert (status, out) == (2, "")
    assert "optim.warmup_steps is 30" in err


def test_configs_inside_the_package_are_preferred(tmp_path, monkeypatch):
    """As in a wheel."""
    inside = tmp_path / "ssd_jax/configs"
    inside.mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (inside / "a.py").write_text('"""Train A.\n\nMore."""\n')
    (tmp_path / "configs/b.py").write_text("")
    monkeypatch.setattr("ssd_jax.config_file.__file__", str(tmp_path / "ssd_jax/config_file.py"))
    assert find_configs() == {"a": inside / "a.py"}
    assert describe_config(inside / "a.py") == "Train A."


def test_main_returns_the_status_of_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ssd-jax"])
    monkeypatch.setattr("ssd_jax.cli.estimate.main", lambda arguments: len(arguments))
    assert main(["estimate", "a", "b"]) == 2


def test_train_runs_a_config_by_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "ssd_jax.training.loop.train", lambda config, workdir, **_: calls.append((config, workdir))
    )
    train(["--config", "quickstart"])
    assert calls == [(load_config("quickstart"), Path("runs/quickstart"))]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tra"], {"train"}),
        (["data", "sh"], {"show"}),
        (["train", "--train.st"], {"--train.steps"}),
        (["export", "--to", ""], {"stablehlo", "onnx", "savedmodel", "tflite"}),
    ],
)
def test_bash_completion(program, words, expected):
    status, script, err = program("--print-completion", "bash")
    assert (status, err) == (0, "")
    line = ["ssd-jax", *words]
    script += f"COMP_WORDS=({' '.join(map(shlex.quote, line))}); COMP_CWORD={len(words)}\n"
    script += '_tyro_ssd_jax; printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_completion_knows_every_command():
    assert list(completion.COMMANDS) == list(COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["fish"], ["bash", "zsh"]])
def test_unknown_shells_are_errors(program, arguments):
    status, _, err = program("--print-completion", *arguments)
    assert status == 2
    assert err == "ssd-jax: --print-completion needs one of bash, zsh, tcsh\n"
