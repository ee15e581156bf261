"""VGG16's convolutions from a file: what is loaded, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.config import BASE_LAYERS, ConfigError, ModelConfig, PriorConfig
from ssd_jax.models.ssd import make_model
from ssd_jax.weights.pretrained import load_pretrained

CONFIG = ModelConfig(
    classes=("a",),
    image_size=64,
    width_multiplier=0.125,
    feature_layers=("conv4_3", "conv7"),
    extras=(),
)
PRIORS = PriorConfig(sizes=(16, 32, 64), steps=(), aspect_ratios=((), ()))


@pytest.fixture(scope="module")
def params():
    init = jax.jit(make_model(CONFIG, PRIORS).init)
    return init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]


@pytest.fixture
def arrays(params):
    rng = np.random.default_rng(0)
    return {
        f"{name}/{key}": rng.normal(size=params["base"][name]["conv"][leaf].shape).astype("f")
        for name in BASE_LAYERS[:13]
        for key, leaf in (("w", "kernel"), ("b", "bias"))
    }


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_layers_come_from_the_file(params, arrays, tmp_path, suffix):
    path = tmp_path / f"vgg.{suffix}"
    np.savez(path, **arrays) if suffix == "npz" else save_file(arrays, path)
    loaded, report = load_pretrained(params, path, channels="rgb")
    assert report.loaded == BASE_LAYERS[:13]
    assert report.fresh == ("conv6", "conv7")
    for name in BASE_LAYERS[:13]:
        np.testing.assert_array_equal(loaded["base"][name]["conv"]["kernel"], arrays[f"{name}/w"])
        np.testing.assert_array_equal(loaded["base"][name]["conv"]["bias"], arrays[f"{name}/b"])
    assert loaded["base"]["conv6"] is params["base"]["conv6"]
    assert "starts fresh: conv6, conv7" in str(report)


def test_bgr_weights_eat_rgb(params, arrays, tmp_path):
    np.savez(tmp_path / "vgg.npz", **arrays)
    bgr, _ = load_pretrained(params, tmp_path / "vgg.npz", channels="bgr")
    kernel = bgr["base"]["conv1_1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["conv1_1/w"][:, :, ::-1])


def test_the_last_layers_output_can_be_scaled(params, arrays, tmp_path):
    np.savez(tmp_path / "vgg.npz", **arrays)
    loaded, _ = load_pretrained(params, tmp_path / "vgg.npz", channels="rgb", scale=0.02)
    for name, factor in (("conv5_2", 1), ("conv5_3", 0.02)):
        for key, leaf in (("w", "kernel"), ("b", "bias")):
            expected = arrays[f"{name}/{key}"] * factor
            np.testing.assert_allclose(loaded["base"][name]["conv"][leaf], expected, rtol=1e-6)
    assert loaded["base"]["conv6"] is params["base"]["conv6"]


def without(arrays, name):
    return {k: v for k, v in arrays.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: without(a, "conv2_1/b"), "only half of conv2_1"),
        (lambda a: a | {"conv2_1/b": np.zeros(3, "f")}, r"conv2_1/b .* has shape \(3,\)"),
        (lambda a: a | {"conv2_1/b": a["conv2_1/b"] * np.nan}, "conv2_1/b .* is not finite"),
        (lambda a: {"fc8/w": np.zeros(3, "f")}, "holds no layer of VGG16"),
    ],
)
def test_what_does_not_fit_is_named(params, arrays, tmp_path, change, message):
    np.savez(tmp_path / "vgg.npz", **change(arrays))
    with pytest.raises(ConfigError, match=message):
        load_pretrained(params, tmp_path / "vgg.npz", channels="bgr")


def test_broken_files_are_named(params, tmp_path):
    cases = {
        "missing.npz": "there is no file",
        "page.npz": "page.npz cannot be read",
        "page.safetensors": "page.safetensors cannot be read",
        "weights.txt": "neither .npz nor .safetensors",
    }
    for name, message in cases.items():
        if name != "missing.npz":
            (tmp_path / name).write_text("<html>not found</html>")
        with pytest.raises(ConfigError, match=message):
            load_pretrained(params, tmp_path / name, channels="bgr")


def test_a_pickle_in_an_npz_does_not_run(params, tmp_path):
    np.savez(tmp_path / "evil.npz", **{"conv1_1/w": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pretrained(params, tmp_path / "evil.npz", channels="bgr")
