"""Initialization from files of VGG16 weights, in every format."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.config import BASE_LAYERS, ConfigError
from ssd_jax.models.ssd import init_variables, make_model
from ssd_jax.weights.finetune import init_from
from ssd_jax.weights.name_maps import VGG16_POSITIONS, hwio_to_oihw
from tests.tiny import TINY, change

CONFIG = change(TINY, model={"classes": ("a",), "batch_norm": False})
SCALE = np.float32(0.02)


@pytest.fixture(scope="module")
def variables():
    return init_variables(make_model(CONFIG.model, CONFIG.priors), jax.random.key(0))


@pytest.fixture
def arrays(variables):
    rng = np.random.default_rng(0)
    return {
        f"{name}/{key}": rng.normal(
            size=variables["params"]["base"][name]["conv"][leaf].shape
        ).astype("f")
        for name in BASE_LAYERS[:13]
        for key, leaf in (("w", "kernel"), ("b", "bias"))
    }


def start(variables, path, config=CONFIG):
    """Initialize from a file; return the base network's parameters and the report."""
    result, report = init_from(variables, change(config, model={"init_from": str(path)}))
    rest = {k: v for k, v in result["params"].items() if k != "base"}
    expected = {k: v for k, v in variables["params"].items() if k != "base"}
    jax.tree.map(np.testing.assert_array_equal, rest, expected)
    return result["params"]["base"], report


def assert_layers_equal(base, arrays, layers=BASE_LAYERS[:13]):
    for name in layers:
        # Without conv6, conv5_3 is scaled. The arrays take BGR, the network RGB.
        scale = SCALE if name == "conv5_3" else np.float32(1)
        kernel = arrays[f"{name}/w"][:, :, ::-1] if name == "conv1_1" else arrays[f"{name}/w"]
        np.testing.assert_array_equal(base[name]["conv"]["kernel"], kernel * scale)
        np.testing.assert_array_equal(base[name]["conv"]["bias"], arrays[f"{name}/b"] * scale)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_layers_equal_the_file(variables, arrays, tmp_path, suffix):
    path = tmp_path / f"vgg.{suffix}"
    np.savez(path, **arrays) if suffix == "npz" else save_file(arrays, path)
    base, report = start(variables, path)
    assert report.num_loaded == 26
    assert report.reinitialized[:2] == ("base/conv6/conv", "base/conv7/conv")
    assert_layers_equal(base, arrays)
    fresh = variables["params"]["base"]
    np.testing.assert_array_equal(base["conv6"]["conv"]["kernel"], fresh["conv6"]["conv"]["kernel"])
    assert "vgg16 weights of SSD's base network; without conv6 and conv7" in str(report)


def test_layout_is_detected(variables, arrays, tmp_path):
    """torchvision's ImageNet weights take RGB, Keras' take BGR; each has its own names."""
    keras = {
        f"block{name[4]}_conv{name[6]}.{leaf}": arrays[f"{name}/{key}"]
        for name in BASE_LAYERS[:13]
        for key, leaf in (("w", "kernel"), ("b", "bias"))
    }
    save_file(keras, tmp_path / "keras.safetensors")
    base, report = start(variables, tmp_path / "keras.safetensors")
    np.testing.assert_array_equal(
        base["conv1_1"]["conv"]["kernel"], arrays["conv1_1/w"][:, :, ::-1]
    )
    assert "the weights were trained with (123.68, 116.779, 103.939)" in str(report)
    torchvision = {
        f"features.{position}.{leaf}": hwio_to_oihw(arrays[f"{name}/{key}"])
        for name, position in zip(BASE_LAYERS[:13], VGG16_POSITIONS.values(), strict=False)
        for key, leaf in (("w", "weight"), ("b", "bias"))
    }
    save_file(torchvision, tmp_path / "torchvision.safetensors")
    base, _ = start(variables, tmp_path / "torchvision.safetensors")
    assert_layers_equal(base, arrays, BASE_LAYERS[1:13])
    scale = 255 * np.array([0.229, 0.224, 0.225])[:, None]
    np.testing.assert_array_equal(
        base["conv1_1"]["conv"]["kernel"], (arrays["conv1_1/w"] / scale).astype(np.float32)
    )


def test_plain_names_are_bgr_by_default(variables, arrays, tmp_path):
    np.savez(tmp_path / "vgg.npz", **arrays)
    base, _ = start(variables, tmp_path / "vgg.npz")
    kernel = base["conv1_1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["conv1_1/w"][:, :, ::-1])


def test_part_of_the_layers(variables, arrays, tmp_path):
    part = {name: value for name, value in arrays.items() if not name.startswith("conv5")}
    np.savez(tmp_path / "vgg.npz", **part, other=np.zeros(1))
    base, report = start(variables, tmp_path / "vgg.npz")
    assert_layers_equal(base, arrays, BASE_LAYERS[:10])
    assert report.reinitialized[0] == "base/conv5_1/conv"
    assert "unused: other" in str(report)


@pytest.mark.parametrize("complete", [False, True])
def test_conv5_3_is_scaled_only_before_a_random_conv6(variables, arrays, tmp_path, complete):
    for name in ("conv6", "conv7") if complete else ():
        conv = variables["params"]["base"][name]["conv"]
        arrays |= {f"{name}/w": np.array(conv["kernel"]), f"{name}/b": np.array(conv["bias"])}
    np.savez(tmp_path / "vgg.npz", **arrays)
    base, report = start(variables, tmp_path / "vgg.npz")
    for key, leaf in (("w", "kernel"), ("b", "bias")):
        expected = arrays[f"conv5_3/{key}"] * (np.float32(1) if complete else SCALE)
        np.testing.assert_array_equal(base["conv5_3"]["conv"][leaf], expected)
    assert report.rescaled == (() if complete else ("base/conv5_3/conv",))
    assert ("scaled by 0.02: base/conv5_3/conv" in str(report)) != complete


def without(arrays, name):
    return {k: v for k, v in arrays.items() if k != name}


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        (lambda a: without(a, "conv2_1/b"), "only the kernel or the bias of conv2_1"),
        (
            lambda a: a | {"conv2_1/b": np.zeros(3, "f")},
            r"conv2_1/b has shape \(3,\) .* need model.width_multiplier 1.0",
        ),
        (lambda a: a | {"conv2_1/b": a["conv2_1/b"] * np.nan}, "conv2_1/b is not finite"),
        (lambda a: {"conv1_1/x": np.zeros(3, "f")}, "contains no layer of VGG16"),
        (lambda a: {"fc8/w": np.zeros(3, "f")}, "has an unknown layout"),
        (lambda a: {"vgg.0.weight": np.zeros(3, "f")}, "ssd-jax weights import .* --channels"),
    ],
)
def test_invalid_arrays_are_named(variables, arrays, tmp_path, change_, message):
    np.savez(tmp_path / "vgg.npz", **change_(arrays))
    with pytest.raises(ConfigError, match=rf"^model.init_from: .*{message}"):
        start(variables, tmp_path / "vgg.npz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npz", "file not found: .*missing.npz"),
        ("missing.pth", "file not found: .*missing.pth"),
        ("page.npz", "page.npz is a web page"),
        ("page.safetensors", "page.safetensors is a web page"),
        ("weights.txt", "weights.txt has an unknown suffix; expected one of .pth"),
    ],
)
def test_invalid_files_are_named(tmp_path, name, message):
    if not name.startswith("missing"):
        (tmp_path / name).write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match=f"^model.init_from: .*{message}"):
        start({"params": {"base": {}}}, tmp_path / name)


def test_pickle_in_npz_is_not_executed(variables, tmp_path):
    np.savez(tmp_path / "evil.npz", **{"conv1_1/w": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ConfigError, match="cannot be read"):
        start(variables, tmp_path / "evil.npz")


def test_npz_that_unpacks_to_too_much_is_refused(variables, tmp_path, monkeypatch):
    monkeypatch.setattr("ssd_jax.weights.files.MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", **{"conv1_1/w": np.zeros(10_000)})
    with pytest.raises(ConfigError, match=r"model.init_from: .*bomb.npz would unpack to"):
        start(variables, tmp_path / "bomb.npz")
