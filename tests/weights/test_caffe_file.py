"""Files of Caffe: arrays, damaged and hostile files, and the layouts of Caffe's networks.

The files are made by a small writer of the wire format, which uses nothing of ssd_jax.
"""

import struct
from functools import cache

import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.cli.weights import main
from ssd_jax.config import UserError
from ssd_jax.models.ssd import make_model, variable_shapes
from ssd_jax.weights.caffe_file import MAX_STEPS, read_caffemodel
from ssd_jax.weights.class_names import COCO_CLASSES, VOC_CLASSES
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import WeightFile, read_arrays
from ssd_jax.weights.importers import import_arrays
from ssd_jax.weights.layouts import PRIORS, detect_format, ssd_model
from tests.adversarial.limits import assert_one_line, read_weights_in_process, result_or_error
from tests.adversarial.strategies import HOSTILE, edited_bytes
from tests.conftest import SHARED

# Writer of the wire format.


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def floats(values, field=5, *, packed=True, code="f"):
    parts = [struct.pack(f"<{code}", value) for value in values]
    if packed:
        return message(field, b"".join(parts))
    tag = varint(field << 3 | (5 if code == "f" else 1))
    return b"".join(tag + part for part in parts)


def shape_of(dims, *, packed=True):
    if packed:
        return message(7, message(1, b"".join(map(varint, dims))))
    return message(7, b"".join(number(1, dim) for dim in dims))


def legacy(*dims):
    return b"".join(number(field, dim) for field, dim in enumerate(dims, 1))


def array_blob(array):
    return message(5, array.astype("<f4").tobytes()) + shape_of(array.shape)


def layer(name, *blobs, version=2):
    """A layer with fields that are skipped: type, bottom and parameters."""
    name = name.encode() if isinstance(name, str) else name
    if version == 2:
        start = message(1, name) + message(2, b"Convolution") + message(3, b"data")
        return message(100, start + b"".join(message(7, blob) for blob in blobs))
    start = message(2, b"data") + message(4, name) + number(5, 4)
    return message(2, start + b"".join(message(6, blob) for blob in blobs))


def net(*layers):
    return message(1, b"net") + message(3, b"data") + number(5, 0) + b"".join(layers)


ONE = floats([1]) + shape_of([1])


def read(tmp_path, content):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(content)
    return read_arrays(path).values


# Arrays.


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_arrays_of_both_versions(tmp_path, version, packed):
    values = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    kernel = shape_of([2, 3, 5, 1], packed=packed) + floats(values, packed=packed)
    bias = floats(values[:2], packed=packed) + shape_of([2], packed=packed)
    other = layer("data", version=version)
    content = net(other, layer("conv/1", kernel, bias, version=version), other)
    arrays = read(tmp_path, content)
    assert list(arrays) == ["conv/1/0", "conv/1/1"]
    np.testing.assert_array_equal(arrays["conv/1/0"], values.reshape(2, 3, 5, 1))
    np.testing.assert_array_equal(arrays["conv/1/1"], values[:2])
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in arrays.values())
    assert all(a.flags.owndata or a.base.flags.owndata for a in arrays.values())


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ((2, 3, 1, 1), (2, 3, 1, 1)),
        ((1, 1, 1, 6), (6,)),
        ((1, 1, 2, 3), (2, 3)),
        ((1, 6, 1, 1), (1, 6, 1, 1)),
        ((1, 2, 1, 3), (1, 2, 1, 3)),
    ],
)
def test_legacy_dimensions(tmp_path, dims, expected):
    arrays = read(tmp_path, net(layer("a", legacy(*dims) + floats(range(6)), version=1)))
    assert arrays["a/0"].shape == expected
    np.testing.assert_array_equal(arrays["a/0"].ravel(), range(6))


def test_scalar(tmp_path):
    assert read(tmp_path, net(layer("a", floats([3]) + message(7, b""))))["a/0"].shape == ()


@pytest.mark.parametrize("packed", [True, False])
def test_double_precision(tmp_path, packed):
    data = floats([0.1, 1e300, -2], 8, packed=packed, code="d")
    array = read(tmp_path, net(layer("a", data + shape_of([3]))))["a/0"]
    np.testing.assert_array_equal(array, np.float32([0.1, np.inf, -2]))
    assert array.dtype == np.float32


def test_data_in_parts(tmp_path):
    """Packed and unpacked parts in turn; gradients and unknown fields between them."""
    gradients = floats([9] * 5, 6, packed=False) + floats([9] * 5, 6)
    unknown = number(50, 7) + message(51, b"xyz") + floats([8] * 40, 52, packed=False)
    data = b"".join(
        [
            *(floats([0, 1]), floats([2], packed=False), gradients, floats([]), unknown),
            *(floats(range(3, 99), packed=False), floats([99]), floats([8] * 2, 9, code="d")),
        ]
    )
    blob = shape_of([10]) + data + shape_of([2, 5])  # parts of a message are merged
    array = read(tmp_path, net(layer("a", blob)))["a/0"]
    np.testing.assert_array_equal(array, np.arange(100).reshape(10, 2, 5))


def test_name_after_the_arrays(tmp_path):
    content = message(100, message(7, ONE) + message(1, b"x") + message(1, b"last"))
    assert list(read(tmp_path, content)) == ["last/0"]


def test_net_whose_name_looks_like_a_web_page(tmp_path):
    """A name of 60 characters: the file starts with a line feed and "<"."""
    content = message(1, b"x" * 60) + layer("a", ONE)
    assert content.startswith(b"\n<")
    assert list(read(tmp_path, content)) == ["a/0"]
    with pytest.raises(WeightsError, match="is a web page"):
        read(tmp_path, b"\n <HTML>")


# Errors.


def nested(field, depth):
    """A message in a message, and so on."""
    content = b""
    for _ in range(depth):
        content = message(field, content)
    return content


ERRORS = {
    "empty": (b"", "is empty$"),
    "text": (b"name: 'net'\nlayer {}", "damaged or of another format: byte 0 has the wire type 6"),
    "zip": (b"PK\x03\x04" + bytes(100), "cannot be read: "),
    "no arrays": (net(layer("a"), layer("b")), "contains no arrays"),
    "zeros": (bytes(100), "byte 0 has the field number 0"),
    "group": (net() + b"\x0b\x0b\x0c\x0c", "has the wire type 3"),
    "end of a group": (net() + b"\x0c", "has the wire type 4"),
    "wire type 7": (net() + b"\x0f", "has the wire type 7"),
    "cut tag": (net() + b"\xa2", "it is truncated"),
    "cut number": (net() + b"\x28\xff\xff", "it is truncated"),
    "long number": (net() + b"\x28" + b"\xff" * 10 + b"\x01", "more than 10 bytes"),
    "cut content": (net(layer("a", ONE))[:-1], "it is truncated"),
    "cut float": (layer("a", shape_of([1]) + b"\x2d\0\0\0"), "it is truncated"),
    "length beyond the end": (net() + b"\xa2\x06" + varint(1 << 63), "it is truncated"),
    "length beyond the layer": (message(100, b"\x3a\x09") + bytes(50), "it is truncated"),
    "nested layers": (net(nested(100, 5000)), "contains no arrays"),
    "nested blobs": (net(layer("a", nested(7, 5000))), r"0 numbers and the shape \(\)"),
    "number for a layer": (number(100, 3), "field 100 at byte 2 has the wire type 0"),
    "number for a name": (message(100, number(1, 3)), "field 1 at byte .* wire type 0"),
    "number for a blob": (message(100, number(7, 3)), "field 7 at byte .* wire type 0"),
    "number for the data": (layer("a", number(5, 3)), "field 5 at byte .* wire type 0"),
    "number for a shape": (layer("a", number(7, 3)), "field 7 at byte .* wire type 0"),
    "doubles for floats": (layer("a", floats([1], packed=False, code="d")), "has the wire type 1"),
    "bytes for a dimension": (layer("a", message(1, b"ab")), "field 1 at byte .* wire type 2"),
    "no shape": (layer("a", floats([1])), "a/0 has no shape"),
    "negative dimension": (layer("a", ONE[:6] + shape_of([-1])), "a/0 has an invalid shape"),
    "negative legacy one": (layer("a", legacy(-1, 1, 1, 1)), "a/0 has an invalid shape"),
    "zero dimension": (layer("a", shape_of([0])), "a/0 has an invalid shape"),
    "too few legacy ones": (layer("a", legacy(1, 1) + floats([1])), "a/0 has an invalid shape"),
    "huge dimension": (layer("a", shape_of([1 << 31])), "a/0 has an invalid shape"),
    "many axes": (layer("a", floats([1]) + shape_of([1] * 33)), "a/0 has an invalid shape"),
    "huge shape": (layer("a", floats([1]) + shape_of([1 << 30] * 32)), "1 numbers and the shape"),
    "more data": (layer("a", floats([1, 2]) + shape_of([1])), r"2 numbers and the shape \(1,\)"),
    "less data": (layer("a", floats([1]) + shape_of([2])), r"1 numbers and the shape \(2,\)"),
    "no data": (layer("a", shape_of([2])), r"0 numbers and the shape \(2,\)"),
    "part of a float": (layer("a", message(5, b"12345")), "5 bytes, which is not a multiple of 4"),
    "part of a double": (layer("a", message(8, b"1234")), "4 bytes, which is not a multiple of 8"),
    "both": (layer("a", floats([1]) + floats([1], 8, code="d") + shape_of([2])), "of two types"),
    "raw data": (layer("a", number(10, 2) + message(12, b"12")), "a/0 is stored as raw data of NV"),
    "version 0": (message(2, message(1, message(1, b"a"))), "layers of the first version of Caffe"),
    "repeated name": (net(layer("a", ONE), layer("a", ONE)), "has two arrays of the name a/0"),
    "versions": (net(layer("a", ONE), layer("a", ONE, version=1)), "two arrays of the name a/0"),
    "no name": (message(100, message(7, ONE)), "the name of a layer with arrays is empty"),
    "long name": (layer("a" * 201, ONE), "not printable or too long"),
    "escape in a name": (layer("\x1b[31m", ONE), "not printable or too long"),
    "not UTF-8": (layer(b"\xff\xfe", ONE), "cannot be read: 'utf-8' codec"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line(tmp_path, name):
    content, message = ERRORS[name]
    with pytest.raises(WeightsError, match=message) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(str(tmp_path))
    assert_one_line(str(error.value))


def test_limits(tmp_path):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(net(layer("a", ONE)))
    size = path.stat().st_size
    assert list(read_caffemodel(path, max_bytes=size)) == ["a/0"]
    with pytest.raises(WeightsError, match=f"a.caffemodel has {size} bytes; the limit is"):
        read_caffemodel(path, max_bytes=size - 1)
    # 4 fields of the net, 4 of the layer, 2 of the blob, 1 of the shape, and its dimension.
    most = net(layer("a", ONE)) + number(5, 0) * (MAX_STEPS - 12)
    assert list(read(tmp_path, most)) == ["a/0"]
    with pytest.raises(WeightsError, match=f"more than {MAX_STEPS:,} fields"):
        read(tmp_path, most + number(5, 0))


# Round trips, mutations and bombs.

BLOBS = st.tuples(
    st.lists(st.integers(1, 4), max_size=4), st.booleans(), st.booleans(), st.booleans()
)
LAYERS = st.dictionaries(
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8),
    st.tuples(st.sampled_from([1, 2]), st.lists(BLOBS, max_size=3)),
    max_size=4,
)


def make_file(layers):
    """Return the content of a file, and its arrays by name."""
    rng, parts, expected = np.random.default_rng(1), [], {}
    for name, (version, blobs) in layers.items():
        contents = []
        for index, (dims, packed, double, shape_first) in enumerate(blobs):
            array = rng.standard_normal(dims).astype(np.float32)
            how = {"field": 8, "code": "d"} if double else {}
            halves = [shape_of(dims, packed=packed), floats(array.ravel(), packed=packed, **how)]
            contents.append(b"".join(halves if shape_first else halves[::-1]))
            expected[f"{name}/{index}"] = array
        parts.append(layer(name, *contents, version=version))
    return net(*parts), expected


@settings(HOSTILE, max_examples=50)
@given(LAYERS)
def test_round_trip(tmp_path_factory, layers):
    content, expected = make_file(layers)
    path = tmp_path_factory.mktemp("trip") / "a.caffemodel"
    path.write_bytes(content)
    arrays = read_caffemodel(path, max_bytes=len(content))
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.adversarial
@settings(HOSTILE, max_examples=1000)
@given(st.data())
def test_damaged_files(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "a.caffemodel"
    content, _ = make_file({"a": (2, [([2, 3], True, False, False), ([4], False, True, True)])})
    legacy_layer = layer("b", legacy(1, 1, 2, 2) + floats(range(4)), version=1)
    path.write_bytes(data.draw(edited_bytes(content + legacy_layer)))
    result = result_or_error(lambda: read_arrays(path).values, num_bytes=200e6)
    if not isinstance(result, UserError):
        assert all(array.dtype == np.float32 for array in result.values())


BOMBS = {
    "empty layers": lambda: message(100, b"") * 10_000_000,
    "named layers": lambda: layer("a") * 1_000_000,
    "arrays": lambda: b"".join(layer(str(k), *[ONE] * 5) for k in range(50_000)),
    "empty blobs": lambda: message(100, message(7, b"") * 10_000_000),
    "numbers": lambda: number(5, 0) * 20_000_000,
    "dimensions": lambda: layer("a", shape_of([1] * 5_000_000)),
    "unpacked dimensions": lambda: layer("a", shape_of([1] * 5_000_000, packed=False)),
    "short runs": lambda: layer("a", (b"\x2d\0\0\0\0" + b"\x35\0\0\0\0") * 5_000_000),
    "runs of long tags": lambda: b"\x85\x03\0\0\0\0" * 10_000_000,
    "many parts": lambda: layer("a", floats([1]) * 5_000_000 + shape_of([5_000_000])),
    "nesting": lambda: b"\xa2\x06\xff\xff\xff\x7f" * 5_000_000,
    "unpacked floats of another shape": lambda: layer(
        "a", b"\x2d\0\0\0\0" * 20_000_000 + shape_of([7])
    ),
    "unpacked floats": lambda: layer(
        "a", b"\x2d\0\0\x80\x3f" * 20_000_000 + shape_of([20_000_000])
    ),
}
"""Functions, because the bombs are large."""


@pytest.mark.adversarial
@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    path = tmp_path / f"{name}.caffemodel"
    path.write_bytes(BOMBS[name]())
    result = read_weights_in_process(path, seconds=1, num_bytes=200e6)
    path.unlink()
    if name == "unpacked floats":  # 100 MB that are valid
        assert result == "read"
    else:
        assert result.startswith(f"{path} cannot be read: ")


# MobileNet-SSD.


@pytest.fixture(scope="module")
def mobilenet():
    file = SHARED / "weights" / "MobileNetSSD_deploy.caffemodel"
    if not file.is_file():
        pytest.skip("needs ../shared/weights, which is not part of the repository")
    return file


def test_mobilenet_ssd(mobilenet):
    arrays = read_arrays(mobilenet).values
    assert len(arrays) == 94
    assert sum(array.size for array in arrays.values()) == 5_783_417
    names = list(arrays)
    assert names[:4] == ["conv0/0", "conv0/1", "conv1/dw/0", "conv1/dw/1"]
    assert names[-2:] == ["conv17_2_mbox_conf/0", "conv17_2_mbox_conf/1"]
    for name, shape, first, total in (
        ("conv0/0", (32, 3, 3, 3), 0.3184112, -0.6167679789941758),
        ("conv1/dw/0", (32, 1, 3, 3), -0.09173706, -3.6002179137431085),
        ("conv1/1", (64,), 3.1797187, 41.51142689585686),
        ("conv17_2_mbox_conf/0", (126, 128, 1, 1), -0.19579908, -6504.7556828303805),
    ):
        assert arrays[name].shape == shape
        assert arrays[name].flat[0] == np.float32(first)
        np.testing.assert_allclose(arrays[name].sum(dtype=np.float64), total, rtol=1e-12)


def test_info_on_mobilenet_ssd(mobilenet, capsys):
    main(["info", str(mobilenet)])
    out = capsys.readouterr().out
    assert "has the layout caffe-mobilenet-ssd; its network is not supported yet" in out
    assert "94, 5,783,417 numbers" in out
    assert "conv17_2_mbox_conf/0" in out


# SSD of the paper's authors.

CONVS = {
    **{name: name for name in ("conv1_1", "conv1_2", "conv2_1", "conv2_2")},
    **{f"conv{k}_{n}": f"conv{k}_{n}" for k in (3, 4, 5) for n in (1, 2, 3)},
    "conv6": "fc6", "conv7": "fc7", "conv8_1": "conv6_1", "conv8_2": "conv6_2",
    "conv9_1": "conv7_1", "conv9_2": "conv7_2", "conv10_1": "conv8_1", "conv10_2": "conv8_2",
    "conv11_1": "conv9_1", "conv11_2": "conv9_2", "conv12_1": "conv10_1", "conv12_2": "conv10_2",
    "head_conv4_3": "conv4_3_norm_mbox_", "head_conv7": "fc7_mbox_",
    "head_conv8_2": "conv6_2_mbox_", "head_conv9_2": "conv7_2_mbox_",
    "head_conv10_2": "conv8_2_mbox_", "head_conv11_2": "conv9_2_mbox_",
    "head_conv12_2": "conv10_2_mbox_",
}  # fmt: skip
"""Caffe's names by the names here."""


@cache
def shapes_of(image_size, num_classes):
    model = ssd_model(image_size, tuple(map(str, range(num_classes))))
    tree = variable_shapes(make_model(model, PRIORS[image_size, "voc"]))["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def caffe_name(path):
    if path[0] == "l2norm_conv4_3":
        return "conv4_3_norm", 0
    index = ("kernel", "bias").index(path[-1])
    if path[0].startswith("head_"):
        return CONVS[path[0]] + path[1], index
    return CONVS[path[1]], index


def caffe_array(path, array):
    """OIHW and BGR, which NumPy's axes give: HWIO to OIHW."""
    if array.ndim == 4:
        array = np.moveaxis(array, (2, 3), (1, 0))
    return array[:, ::-1] if path == ("base", "conv1_1", "conv", "kernel") else array


@pytest.mark.parametrize("image_size", [300, pytest.param(512, marks=pytest.mark.slow)])
def test_ssd_is_imported_bit_for_bit(tmp_path, image_size):
    rng = np.random.default_rng(0)
    params = {
        path: rng.random(shape, np.float32) for path, shape in shapes_of(image_size, 2).items()
    }
    layers = {}
    for path, array in params.items():
        name, index = caffe_name(path)
        layers.setdefault(name, {})[index] = array_blob(caffe_array(path, array))
    path = tmp_path / "a.caffemodel"
    path.write_bytes(net(*(layer(k, *(b[i] for i in sorted(b))) for k, b in layers.items())))
    imported = import_arrays(path, read_arrays(path), classes=("cat", "dog"))
    path.unlink()
    summary = f"caffe-ssd SSD{image_size}, 2 classes, VOC's priors; channels reversed from bgr"
    assert imported.summary == summary
    flat = traverse_util.flatten_dict(imported.params)
    assert flat.keys() == params.keys()
    for name, array in params.items():
        assert np.array_equal(flat[name], array), name


def empty_ssd(image_size, num_classes):
    arrays = {}
    for path, shape in shapes_of(image_size, num_classes).items():
        value = np.broadcast_to(np.float32(0), shape)
        arrays["{}/{}".format(*caffe_name(path))] = caffe_array(path, value)
    return arrays


@pytest.mark.parametrize(
    ("image_size", "dataset", "classes"),
    [(300, "voc", VOC_CLASSES), (512, "coco", COCO_CLASSES), (300, "voc", ("a", "b"))],
)
def test_settings_are_those_of_the_authors(image_size, dataset, classes):
    arrays = empty_ssd(image_size, len(classes))
    assert detect_format(arrays) == "caffe-ssd"
    names = classes if len(classes) == 2 else ()
    config = import_arrays("a", WeightFile(arrays, {}), classes=names).config
    assert config.model.classes == classes
    assert config.model.image_size == image_size
    assert config.model.image_mean == (123, 117, 104)
    assert config.priors == PRIORS[image_size, dataset]
    assert not config.priors.clip
    assert not config.priors.clip_wh
    limits = (config.eval.nms_iou_threshold, config.eval.topk_candidates)
    assert limits == (0.45, 400)
    assert (config.eval.detections_per_image, config.eval.score_threshold) == (200, 0.01)
    assert config.train.matching == "bipartite"


def test_missing_and_unexpected_arrays_are_named():
    arrays = empty_ssd(300, 2)
    for name, value, expected in (
        ("fc7_mbox_loc/1", None, "a lacks fc7_mbox_loc/1$"),
        ("conv4_3_norm/0", None, "a lacks conv4_3_norm/0$"),
        ("conv6_1/2", np.zeros(3, "f"), "a has conv6_1/2, which belongs to no layer"),
        ("fc6/0", np.zeros((4096, 25088), "f"), r"fc6/0 has shape \(4096, 25088\)"),
    ):
        changed = {k: v for k, v in (arrays | {name: value}).items() if v is not None}
        with pytest.raises(WeightsError, match=expected):
            import_arrays("a", WeightFile(changed, {}))


# VGG16.


def test_classifier_becomes_the_base():
    """fc6 and fc7 are subsampled; the values of fc6 are its columns: (channel, row, column)."""
    shapes = {path: s for path, s in shapes_of(300, 2).items() if path[0] == "base"}
    arrays = {
        "{}/{}".format(*caffe_name(path)): caffe_array(path, np.broadcast_to(np.float32(1), shape))
        for path, shape in shapes.items()
        if path[1] not in ("conv6", "conv7")
    }
    arrays["conv1_1/0"] = np.broadcast_to(np.float32([3, 2, 1])[:, None, None], (64, 3, 3, 3))
    columns = np.arange(512 * 49, dtype=np.float32)
    units = np.arange(4096, dtype=np.float32)
    arrays |= {"fc6/0": np.broadcast_to(columns, (4096, 25088)), "fc6/1": units}
    arrays |= {"fc7/0": np.broadcast_to(units, (4096, 4096)), "fc7/1": units}
    arrays |= {"fc8/0": np.zeros((1000, 4096), "f"), "fc8/1": np.zeros(1000, "f")}
    assert detect_format(arrays) == "caffe-vgg16"
    imported = import_arrays("a", WeightFile(arrays, {}))
    assert imported.config.model.image_mean == (123.68, 116.779, 103.939)
    assert "conv6 and conv7 subsampled from fc6 and fc7; unused: fc8/0, fc8/1" in imported.summary
    base = {k: v["conv"] for k, v in imported.params["base"].items()}
    assert base["conv1_1"]["kernel"][0, 0, :, 0].tolist() == [1, 2, 3]
    row, column, channel = np.indices((3, 3, 512))
    expected = 49 * channel + 21 * row + 3 * column
    assert np.array_equal(
        base["conv6"]["kernel"], np.broadcast_to(expected[..., None], (3, 3, 512, 1024))
    )
    np.testing.assert_array_equal(base["conv7"]["kernel"][0, 0, :, 5], units[::4])
    np.testing.assert_array_equal(base["conv6"]["bias"], units[::4])


def test_reduced_classifier_becomes_the_base():
    rng = np.random.default_rng(0)
    params = {
        path: rng.random(shape, np.float32)
        for path, shape in shapes_of(300, 2).items()
        if path[0] == "base"
    }
    arrays = {"{}/{}".format(*caffe_name(p)): caffe_array(p, v) for p, v in params.items()}
    assert detect_format(arrays) == "caffe-vgg16-reduced"
    imported = import_arrays("a", WeightFile(arrays, {}))
    assert "conv6 and conv7 as in the file" in imported.summary
    assert imported.config.model.image_mean == (123, 117, 104)
    flat = traverse_util.flatten_dict(imported.params)
    assert flat.keys() == params.keys()
    for path, array in params.items():
        assert np.array_equal(flat[path], array), path
