"""Configs from Python, JSON and the command line: a Config, or one error line."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_jax.cli.arguments import override
from ssd_jax.config import Config, ConfigError, from_json, to_json
from ssd_jax.config_file import load_config
from tests.adversarial.limits import result_or_error
from tests.adversarial.strategies import HOSTILE, SCALARS, TEXTS, VALUES, edit_json, edited_bytes
from tests.tiny import TINY

pytestmark = pytest.mark.adversarial

SECTIONS = [field.name for field in dataclasses.fields(Config)]
FIELDS = [
    (section, field.name)
    for section in SECTIONS
    for field in dataclasses.fields(getattr(TINY, section))
]


def is_config_or_error(result):
    return isinstance(result, Config | ConfigError)


@HOSTILE
@given(st.sampled_from(FIELDS), VALUES)
def test_hostile_field_values(field, value):
    section, name = field

    def make():
        changed = dataclasses.replace(getattr(TINY, section), **{name: value})
        return dataclasses.replace(TINY, **{section: changed})

    config = result_or_error(make)
    assert is_config_or_error(config)
    if isinstance(config, Config):
        # A valid config can be saved and read again.
        restored = from_json(to_json(config))
        assert restored == from_json(to_json(restored))


@HOSTILE
@given(st.data())
def test_edited_json(data):
    document = json.loads(to_json(TINY))
    text = edit_json(document, data.draw, data.draw(st.integers(1, 4)))
    assert is_config_or_error(result_or_error(lambda: from_json(text)))


@HOSTILE
@given(edited_bytes(to_json(TINY).encode()))
def test_damaged_json(data):
    text = data.decode("utf-8", "replace")
    assert is_config_or_error(result_or_error(lambda: from_json(text)))


def test_deeply_nested_json():
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"model": ' * 20_000 + "}" * 20_000):
        assert isinstance(result_or_error(lambda text=text: from_json(text)), ConfigError)


@HOSTILE
@given(
    st.lists(
        st.tuples(
            st.sampled_from([f"--{s}.{n}".replace("_", "-") for s, n in FIELDS] + ["--modle.x"]),
            st.one_of(TEXTS, SCALARS.map(str)),
        ),
        max_size=3,
    )
)
def test_hostile_arguments(pairs):
    arguments = [word for pair in pairs for word in pair]

    def parse():
        try:
            return override(TINY, arguments)
        except SystemExit as exit_:  # --help
            return TINY if exit_.code in (0, None) else None

    assert is_config_or_error(result_or_error(parse))


CONFIG_FILES = st.sampled_from(
    [
        "",
        "def get_config(): return None",
        "def get_config(): raise KeyError('x')",
        "def get_config(): raise SystemExit(3)",
        "def get_config(): return get_config()",
        "get_config = 3",
        "import no_such_module",
        "raise ValueError('a\\nb')",
        "def get_config(",
        "\0",
        "from ssd_jax.config import *\ndef get_config(): return Config(model=3)",
        "from ssd_jax.config import *\ndef get_config(): return Config(1, 2, 3)",
        "from ssd_jax.config import *\ndef get_config(x): return Config()",
    ]
)


@HOSTILE
@given(CONFIG_FILES)
def test_invalid_config_files(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(text)
    assert isinstance(result_or_error(lambda: load_config(path)), ConfigError)
