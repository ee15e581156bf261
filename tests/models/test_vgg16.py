"""VGG16 classifiers of several programs as the base of SSD."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from ssd_jax.cli.weights import main
from ssd_jax.config import BASE_LAYERS, Config
from ssd_jax.models.ssd import make_model, variable_shapes
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import WeightFile, read_arrays
from ssd_jax.weights.finetune import init_from
from ssd_jax.weights.importers import import_arrays
from ssd_jax.weights.name_maps import VGG16_POSITIONS, hwio_to_oihw
from ssd_jax.weights.vgg16 import reduce_fc
from tests.conftest import SHARED

SHAPES = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
SHAPES += [(256, 512), *[(512, 512)] * 5]


@pytest.fixture(scope="module")
def convs():
    """Kernel (HWIO) and bias of VGG16's convolutions."""
    rng = np.random.default_rng(0)
    return {
        layer: (
            rng.standard_normal((3, 3, *shape), np.float32),
            rng.standard_normal(shape[1], np.float32),
        )
        for layer, shape in zip(BASE_LAYERS, SHAPES, strict=False)
    }


def torch_names(convs, room):
    names = {}
    for (kernel, bias), position in zip(convs.values(), VGG16_POSITIONS.values(), strict=False):
        names[f"{room}{position}.weight"] = hwio_to_oihw(kernel)
        names[f"{room}{position}.bias"] = bias
    return names


def keras_names(convs, kernel, bias):
    return {
        name.format("block" + layer.removeprefix("conv").replace("_", "_conv")): value
        for layer, values in convs.items()
        for name, value in zip((kernel, bias), values, strict=True)
    }


def assert_base_is(imported, convs, *, bgr):
    for layer, (kernel, bias) in convs.items():
        ours = imported.params["base"][layer]["conv"]
        expected = kernel[:, :, ::-1] if bgr and layer == "conv1_1" else kernel
        np.testing.assert_array_equal(ours["kernel"], expected, err_msg=layer)
        np.testing.assert_array_equal(ours["bias"], bias, err_msg=layer)


@pytest.mark.parametrize(
    ("kernel", "bias"),
    [
        ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),
        ("{0}/{0}/kernel:0", "{0}/{0}/bias:0"),
        ("layers/{0}/vars/0", "layers/{0}/vars/1"),
        ("{0}.kernel", "{0}.bias"),
    ],
)
def test_keras_names_of_all_versions(convs, kernel, bias):
    imported = import_arrays("a.h5", WeightFile(keras_names(convs, kernel, bias), {}))
    assert_base_is(imported, convs, bgr=True)
    assert imported.config.model.image_mean == (123.68, 116.779, 103.939)
    assert "without conv6 and conv7" in imported.summary


def test_h5(convs, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "vgg.h5", "w") as file:
        for name, value in keras_names(convs, "{0}/{0}/kernel:0", "{0}/{0}/bias:0").items():
            file[name] = value
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/x")
    imported = import_arrays("a.h5", read_arrays(tmp_path / "vgg.h5"))
    assert_base_is(imported, convs, bgr=True)


def test_reducedfc_equals_caffe(convs):
    values = torch_names(convs, "")
    rng = np.random.default_rng(1)
    values["31.weight"] = rng.standard_normal((1024, 512, 3, 3), np.float32)
    values["33.weight"] = rng.standard_normal((1024, 1024, 1, 1), np.float32)
    values["31.bias"], values["33.bias"] = np.zeros((2, 1024), np.float32)
    imported = import_arrays("vgg16_reducedfc.pth", WeightFile(values, {}))
    assert_base_is(imported, convs, bgr=True)
    kernel = imported.params["base"]["conv6"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, values["31.weight"].transpose(2, 3, 1, 0))


def test_torchvisions_division_is_folded_into_the_first_kernel(convs):
    imported = import_arrays("vgg16.pth", WeightFile(torch_names(convs, "features."), {}))
    pixels = np.random.default_rng(2).uniform(0, 255, (3, 3, 3))
    seen = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    theirs = np.einsum("ijc,ijco->o", seen, convs["conv1_1"][0])
    kernel = imported.params["base"]["conv1_1"]["conv"]["kernel"]
    ours = np.einsum("ijc,ijco->o", pixels - np.array(imported.config.model.image_mean), kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_torchvisions_features_have_no_classifier(convs):
    values = torch_names(convs, "features.")
    nothing = np.broadcast_to(np.float32(np.nan), (4096, 4096))
    values |= {"classifier.3.weight": nothing, "classifier.3.bias": nothing[0]}
    imported = import_arrays("vgg16_features.pth", WeightFile(values, {}))
    assert_base_is(imported, convs, bgr=False)
    assert set(imported.params["base"]) == set(BASE_LAYERS[:13])
    np.testing.assert_allclose(imported.config.model.image_mean, (123, 117, 104), atol=0.01)


def test_fc6_and_fc7_are_subsampled():
    rng = np.random.default_rng(3)
    fc6, fc7 = rng.normal(size=(7, 7, 2, 12)), rng.normal(size=(12, 12))
    b6, b7 = rng.normal(size=(2, 12))
    (kernel6, bias6), (kernel7, bias7) = reduce_fc(fc6, b6, fc7, b7).values()
    for unit in range(3):
        assert bias6[unit] == b6[4 * unit]
        assert bias7[unit] == b7[4 * unit]
        for i in range(3):
            assert kernel7[0, 0, i, unit] == fc7[4 * i, 4 * unit]
            for j in range(3):
                for c in range(2):
                    assert kernel6[i, j, c, unit] == fc6[3 * i, 3 * j, c, 4 * unit]
    assert kernel6.shape == (3, 3, 2, 3)


@pytest.mark.parametrize("program", ["torchvision", "timm", "keras"])
def test_full_classifier_gives_a_complete_base(convs, program):
    """One weight of each fc layer finds its place, however the program flattens its input."""
    by_torch = program != "keras"
    shape = (4096, 25088) if by_torch else (25088, 4096)
    fc6, fc7 = np.zeros(shape, np.float32), np.zeros((4096, 4096), np.float32)
    i, j, c, unit, other = 3, 6, 100, 8, 12  # row, column, channel, fc6's unit, fc7's
    if by_torch:
        fc6[unit, c * 49 + i * 7 + j], fc7[other, unit] = 1, 2
        values = torch_names(convs, "features.")
        names = ("classifier.0.weight", "classifier.0.bias")
        names += ("classifier.3.weight", "classifier.3.bias")
    else:
        fc6[(i * 7 + j) * 512 + c, unit], fc7[unit, other] = 1, 2
        values = keras_names(convs, "{0}/{0}/kernel:0", "{0}/{0}/bias:0")
        names = ("fc1/fc1/kernel:0", "fc1/fc1/bias:0", "fc2/fc2/kernel:0", "fc2/fc2/bias:0")
    if program == "timm":
        fc6, fc7 = fc6.reshape(4096, 512, 7, 7), fc7.reshape(4096, 4096, 1, 1)
        names = tuple(f"pre_logits.fc{k}.{leaf}" for k in (1, 2) for leaf in ("weight", "bias"))
    bias = np.arange(4096, dtype=np.float32)
    values |= dict(zip(names, (fc6, bias, fc7, bias), strict=True))
    base = import_arrays("vgg", WeightFile(values, {})).params["base"]
    assert set(base) == set(BASE_LAYERS)
    for layer, place, value in (
        ("conv6", (1, 2, c, unit // 4), 1),
        ("conv7", (0, 0, unit // 4, other // 4), 2),
    ):
        kernel = base[layer]["conv"]["kernel"]
        assert kernel.shape[-1] == 1024
        assert np.argwhere(kernel).tolist() == [list(place)]
        assert kernel[place] == value
        np.testing.assert_array_equal(base[layer]["conv"]["bias"], bias[::4])


def test_invalid_arrays_are_reported(convs):
    plain = {
        f"{layer}/{k}": v for layer, kv in convs.items() for k, v in zip("wb", kv, strict=True)
    }
    for change, message in (
        ({"conv5_3/w": None}, "only the kernel or the bias of conv5_3"),
        ({"conv5_3/w": None, "conv5_3/b": None}, "lacks conv5_3 of VGG16"),
        ({"conv5_3/b": np.zeros(3, "f")}, "conv5_3/b has shape"),
    ):
        values = {k: v for k, v in (plain | change).items() if v is not None}
        with pytest.raises(WeightsError, match=message):
            import_arrays("a.npz", WeightFile(values, {}), channels="bgr")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Parameters of SSD300 that start from VGG16's ImageNet convolutions."""
    file = SHARED / "weights" / "vgg16_imagenet_conv.npz"
    if not file.is_file():
        pytest.skip("needs ../shared/weights, which is not part of the repository")
    run = tmp_path_factory.mktemp("vgg") / "run"
    main(["import", str(file), "--out", str(run), "--channels", "bgr"])
    config = Config()
    model = dataclasses.replace(config.model, classes=("a",), init_from=str(run))
    config = dataclasses.replace(config, model=model)
    like = variable_shapes(make_model(model, config.priors))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), like)
    return init_from(fresh, config), np.load(file)


def test_imagenet_convolutions_become_the_base(imagenet):
    (variables, report), file = imagenet
    assert report.num_loaded == 26
    assert report.reinitialized[:2] == ("base/conv6/conv", "base/conv7/conv")
    base = variables["params"]["base"]
    for layer in BASE_LAYERS[:13]:
        expected = file[f"{layer}/w"]
        expected = expected[:, :, ::-1] if layer == "conv1_1" else expected
        expected = expected * np.float32(0.02) if layer == "conv5_3" else expected
        np.testing.assert_array_equal(base[layer]["conv"]["kernel"], expected)
    assert report.rescaled == ("base/conv5_3/conv",)
    assert len(traverse_util.flatten_dict(variables["params"])) == 26 + 45


@pytest.mark.nightly
def test_imagenet_features_separate_classes(imagenet, shared_data):
    """Nearest centroid of conv5_3's means: far above chance, less with BGR."""
    import xml.etree.ElementTree as ET

    import cv2

    from ssd_jax.models.layers import ConvStack
    from ssd_jax.models.vgg import VGG16_LAYERS

    (variables, _), _ = imagenet
    names = ("aeroplane", "bird", "car", "cat", "dog", "horse", "person", "train")
    folder = shared_data / "voc-mini"
    crops = {name: [] for name in names}
    for file in sorted((folder / "Annotations").glob("*.xml")):
        for item in ET.parse(file).iter("object"):
            name, box = item.findtext("name"), item.find("bndbox")
            x1, y1, x2, y2 = (int(float(box.findtext(k))) for k in ("xmin", "ymin", "xmax", "ymax"))
            if name in crops and len(crops[name]) < 15 and min(x2 - x1, y2 - y1) > 90:
                image = cv2.imread(str(folder / "JPEGImages" / f"{file.stem}.jpg"))[..., ::-1]
                crop = cv2.resize(np.ascontiguousarray(image[y1:y2, x1:x2]), (128, 128))
                crops[name].append(crop.astype(np.float32))
    base = ConvStack(VGG16_LAYERS)
    apply = jax.jit(
        lambda x: base.apply({"params": variables["params"]["base"]}, x, False)["conv5_3"].mean(
            (1, 2)
        )
    )

    def accuracy(order):
        features = {}
        for name in names:
            pixels = np.stack(crops[name]) - np.array(Config().model.image_mean, np.float32)
            f = np.asarray(apply(pixels[..., order]))
            features[name] = f / np.linalg.norm(f, axis=1, keepdims=True)
        centres = np.stack([features[name][:10].mean(axis=0) for name in names])
        right = [
            np.argmin(np.linalg.norm(centres - f, axis=1)) == k
            for k, name in enumerate(names)
            for f in features[name][10:]
        ]
        return np.mean(right), len(right)

    ours, tested = accuracy([0, 1, 2])
    turned, _ = accuracy([2, 1, 0])
    print(
        f"nearest centroid of {len(names)} classes, {tested} objects: {ours:.3f}, {turned:.3f} BGR"
    )
    assert tested >= 30
    assert ours > 0.6
