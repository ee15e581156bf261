"""Command lines: a documented exit code and at most one error line."""

import importlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.cli.run import run_main
from tests.adversarial.limits import assert_one_line, limits
from tests.adversarial.strategies import HOSTILE, TEXTS

pytestmark = pytest.mark.adversarial

WORDS = st.one_of(
    st.sampled_from(
        [
            *("--config", "--workdir", "--resume", "--checkpoint", "--out", "--data.root"),
            *("--train.steps", "--train.step", "--batch-size", "--detections", "--classes"),
            *("--ground-truth", "--to", "--target", "--help", "-h", "--", "-", "=", "--=", "-x"),
            *("configs/quickstart.py", "no_such_file", ".", "/", "/tmp", "check", "show", "3"),
        ]
    ),
    TEXTS.filter(lambda text: "\0" not in text and "\ud800" not in text),
)
# Programs that need an existing input, which no case names.
PROGRAMS = {
    "ssd-jax": "ssd_jax.cli.main:main",
    "train.py": "ssd_jax.cli.train:main",
    "evaluate.py": "ssd_jax.cli.evaluate:main",
    "ssd-jax predict": "ssd_jax.cli.predict:main",
    "ssd-jax benchmark": "ssd_jax.cli.benchmark:main",
    "ssd-jax data": "ssd_jax.cli.data:main",
    "ssd-jax export": "ssd_jax.cli.export:main",
    "ssd-jax estimate": "ssd_jax.cli.estimate:main",
    "ssd-jax weights": "ssd_jax.cli.weights:main",
}


@pytest.mark.parametrize("program", PROGRAMS)
@settings(HOSTILE, max_examples=60)
@given(st.lists(WORDS, max_size=5))
def test_random_arguments(program, tmp_path_factory, arguments):
    module, _, name = PROGRAMS[program].partition(":")
    main = getattr(importlib.import_module(module), name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("folder"))
        patch.setattr(sys, "argv", [program, *arguments])
        errors: list[str] = []
        patch.setattr(sys, "stderr", _ListStream(errors))
        patch.setattr(sys, "stdout", _ListStream([]))
        with limits():
            try:
                status = run_main(main)
            except SystemExit as exit_:
                status = exit_.code or 0
    text = "".join(errors)
    assert status in (0, 1, 2), text
    assert "Traceback" not in text
    if status == 2:
        assert_one_line(text.rstrip("\n"))


class _ListStream:
    """Stream that appends its text to a list."""

    encoding = "utf-8"

    def __init__(self, parts):
        self._parts = parts

    def write(self, text):
        self._parts.append(text)
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return False
