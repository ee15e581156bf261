"""Weights of other programs: outputs, priors, detections, settings, base networks and errors.

The tests compare with recorded figures of `tests.weights.torch_layouts`. Where PyTorch is
installed, nightly tests run its networks too.
"""

import dataclasses
import json
from functools import cache

import jax
import numpy as np
import pytest
from flax import traverse_util

from ssd_jax.checkpoints.reader import read_config, restore_model
from ssd_jax.config import BASE_LAYERS
from ssd_jax.inference.detect import make_post_process
from ssd_jax.models.layers import ConvStack
from ssd_jax.models.ssd import make_model, model_priors, variable_shapes
from ssd_jax.models.vgg import VGG16_LAYERS
from ssd_jax.ops.boxes import cxcywh_to_xyxy
from ssd_jax.weights.class_names import COCO_CLASSES, VOC_CLASSES
from ssd_jax.weights.errors import WeightsError
from ssd_jax.weights.files import WeightFile
from ssd_jax.weights.importers import import_arrays
from ssd_jax.weights.layouts import LAYOUTS, PRIORS, SSD_LAYOUTS, detect_format, ssd_model
from ssd_jax.weights.name_maps import VGG16_POSITIONS, hwio_to_oihw, ssd_names, to_head_order
from tests.conftest import SHARED, TESTS
from tests.models.torchvision_case import differences, import_state
from tests.weights import torch_layouts as reference

PROGRAMS = reference.PROGRAMS


@cache
def golden():
    with np.load(TESTS / "golden" / "layouts.npz") as file:
        return dict(file)


def shapes_of(program):
    return {k: tuple(v) for k, v in json.loads(str(golden()[f"{program}/shapes"])).items()}


def empty_state(layout, *, image_size=300, classes=3):
    """Arrays of zeros that need no memory, with the names and shapes of a layout."""
    model, shapes = our_shapes(image_size, classes)
    return {
        name: np.broadcast_to(np.float32(0), shapes[path])
        for name, path in ssd_names(SSD_LAYOUTS[layout], model).items()
    }


@cache
def our_shapes(image_size, classes):
    """Config of a network, and the shapes of its arrays by path, kernels as OIHW."""
    model = ssd_model(image_size, tuple(map(str, range(classes))))
    tree = variable_shapes(make_model(model, PRIORS[image_size, "voc"]))["params"]
    flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}
    return model, {k: (s[3], s[2], *s[:2]) if len(s) == 4 else s for k, s in flat.items()}


def import_state_dict(state, **how):
    return import_arrays("a.pth", WeightFile(state, {}), **how)


# Outputs and detections.


@pytest.fixture(scope="module", params=PROGRAMS)
def case(request, tmp_path_factory):
    """(program, seeded arrays, config, offsets and logits of the imported network)."""
    program = request.param
    state = reference.seeded_state(program, shapes_of(program))
    checkpoint = import_state(state, tmp_path_factory.mktemp(program))
    config = read_config(checkpoint)
    model, variables = restore_model(checkpoint, config)
    outputs = jax.jit(model.apply)(variables, reference.image()[None])
    return program, state, config, outputs


def in_order_of(program, loc, conf):
    """Offsets and logits [P, n] as the program orders them."""
    loc, conf = np.asarray(loc)[0], np.asarray(conf)[0]
    if program == "chainercv":  # dy, dx, dh, dw
        loc = loc[:, [1, 0, 3, 2]]
    if program == "mmdetection":  # background last
        conf = conf[:, [1, 2, 3, 0]]
    return loc, conf


def assert_close(ours, theirs):
    """Equal to 1e-4 of the largest value."""
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"largest difference: {difference:.1e} of {np.abs(theirs).max():.3g}")
    assert difference < 1e-4


@pytest.mark.slow
def test_outputs_equal_the_recorded_ones(case):
    program, _, _, outputs = case
    index = golden()["prior_index"]
    for ours, name in zip(in_order_of(program, *outputs), ("loc", "conf"), strict=True):
        assert_close(ours[index], golden()[f"{program}/{name}"])


@pytest.mark.slow
def test_detections_equal_the_recorded_ones(case):
    program, _, config, outputs = case
    detections = make_post_process(config)(*outputs)
    n = int(detections.count[0])
    names = ("boxes", "scores", "labels")
    ours = {name: np.asarray(getattr(detections, name)[0, :n]) for name in names}
    theirs = {name: golden()[f"{program}/{name}"] for name in names}
    assert n == len(theirs["labels"]) > 20
    assert set(theirs["labels"]) >= {1, 2}
    assert differences(ours, theirs, pixels=1e-4, score=1e-4) == []


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_outputs_and_names_equal_pytorch_live(case):
    pytest.importorskip("torch")
    program, state, _, outputs = case
    assert reference.torch_shapes(program) == shapes_of(program)
    theirs = reference.forward(program, state, reference.image())
    for ours, expected in zip(in_order_of(program, *outputs), theirs, strict=True):
        assert_close(ours, expected)


# Settings.


def priors_of(layout, image_size, dataset):
    """Priors (cxcywh) of a program's network for the classes of VOC or COCO."""
    classes = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}[dataset]
    assert SSD_LAYOUTS[layout].classes[len(classes)] == classes
    found, priors = SSD_LAYOUTS[layout].priors(image_size, len(classes))
    assert found == dataset
    return model_priors(ssd_model(image_size, classes), priors)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
@pytest.mark.parametrize("image_size", [300, 512])
def test_priors_equal_those_of_lufficc(image_size, dataset):
    expected = reference.lufficc_priors(image_size, dataset)
    np.testing.assert_allclose(priors_of("lufficc", image_size, dataset), expected, atol=1e-6)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
@pytest.mark.parametrize("image_size", [300, 512])
def test_priors_equal_the_anchors_of_mmdetection(image_size, dataset):
    corners = cxcywh_to_xyxy(priors_of("mmdetection", image_size, dataset)) * image_size
    expected = reference.mmdetection_anchors(image_size, dataset)
    np.testing.assert_allclose(corners, expected, atol=1e-4)


@pytest.mark.parametrize("image_size", [300, 512])
def test_priors_equal_the_default_boxes_of_chainercv(image_size):
    expected = reference.chainercv_default_boxes(image_size)[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(priors_of("chainercv", image_size, "voc"), expected, atol=1e-6)


def test_priors_equal_those_of_qfgaohao():
    expected = reference.qfgaohao_priors()
    np.testing.assert_allclose(priors_of("qfgaohao", 300, "voc"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "image_size", "classes", "dataset", "mean", "matching", "limits"),
    [
        ("lufficc", 512, 80, "COCO", (123, 117, 104), "per_object", (0.01, 400, 100)),
        ("mmdetection", 512, 80, "COCO", (123.675, 116.28, 103.53), "per_object", (0.02, 400, 200)),
        ("qfgaohao", 300, 20, "VOC", (123, 117, 104), "per_object", (0.01, 200, 4000)),
        ("chainercv", 512, 20, "VOC", (123, 117, 104), "bipartite", (0.01, 400, 8000)),
    ],
)
def test_imported_settings(layout, image_size, classes, dataset, mean, matching, limits):
    state = empty_state(layout, image_size=image_size, classes=classes)
    config = import_state_dict(state).config
    assert config.model == dataclasses.replace(
        ssd_model(image_size, {20: VOC_CLASSES, 80: COCO_CLASSES}[classes]), image_mean=mean
    )
    assert config.priors == SSD_LAYOUTS[layout].priors(image_size, classes)[1]
    assert config.priors.clip == (layout in ("lufficc", "qfgaohao"))
    assert config.train.matching == matching
    names = ("score_threshold", "topk_candidates", "detections_per_image")
    assert tuple(getattr(config.eval, name) for name in names) == limits
    assert config.eval.clip_boxes == (layout == "mmdetection")
    assert config.eval.max_box_scale == (62.5 if layout == "mmdetection" else 0)


@pytest.mark.parametrize(
    ("layout", "dataset"),
    [("lufficc", "VOC"), ("mmdetection", "COCO"), ("qfgaohao", "VOC"), ("chainercv", "VOC")],
)
def test_other_numbers_of_classes_use_the_default_priors(layout, dataset):
    imported = import_state_dict(empty_state(layout, classes=2), classes=("cat", "dog"))
    assert imported.config.model.classes == ("cat", "dog")
    assert imported.summary == f"{layout} SSD300, 2 classes, {dataset}'s priors; channels rgb"


def test_class_names():
    assert len(VOC_CLASSES) == len(set(VOC_CLASSES)) == 20
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == 80
    for index, name in ((1, "person"), (12, "stop sign"), (61, "dining table"), (80, "toothbrush")):
        assert COCO_CLASSES[index - 1] == name


# Base networks.


def seeded_timm():
    return reference.timm_state(shapes_of("timm"))


def conv5_3(params):
    """Features [h, w, c] of the image of the timm case."""
    model = ConvStack(VGG16_LAYERS)
    image = reference.timm_image()[None].astype(np.float32)
    image -= np.float32([0.485, 0.456, 0.406]) * 255
    return np.asarray(
        jax.jit(lambda p, x: model.apply({"params": p}, x, False)["conv5_3"])(params, image)
    )[0]


@pytest.mark.slow
def test_features_equal_those_of_timm():
    imported = import_state_dict(seeded_timm(), layout="timm-vgg16")
    assert imported.config.model.image_mean == (0.485 * 255, 0.456 * 255, 0.406 * 255)
    fc = {
        layer: {"conv": {"kernel": np.zeros((k, k, i, 1024), "f"), "bias": np.zeros(1024, "f")}}
        for layer, k, i in (("conv6", 3, 512), ("conv7", 1, 1024))
    }
    features = conv5_3(imported.params["base"] | fc)
    assert_close(features[..., ::8], golden()["timm/conv5_3"])


@pytest.mark.nightly
def test_features_equal_those_of_timm_live():
    pytest.importorskip("torch")
    assert reference.timm_shapes() == shapes_of("timm")
    assert_close(reference.timm_features(seeded_timm())[..., ::8], golden()["timm/conv5_3"])


@pytest.fixture(scope="module")
def classifier():
    """VGG16's kernels (HWIO, BGR) and biases by layer: ImageNet's if they are there; fc random."""
    file = SHARED / "weights" / "vgg16_imagenet_conv.npz"
    rng = np.random.default_rng(0)
    layers = {}
    for layer, (width, into) in zip(BASE_LAYERS, VGG16_CHANNELS, strict=False):
        layers[layer] = (
            rng.standard_normal((3, 3, into, width), np.float32),
            rng.standard_normal(width, np.float32),
        )
    if file.is_file():
        with np.load(file) as arrays:
            layers = {layer: (arrays[f"{layer}/w"], arrays[f"{layer}/b"]) for layer in layers}
    fc6 = rng.standard_normal((7, 7, 512, 4096), np.float32)
    fc7 = rng.standard_normal((4096, 4096), np.float32)
    bias = rng.standard_normal((2, 4096), np.float32)
    return layers, ((fc6, bias[0]), (fc7, bias[1]))


VGG16_CHANNELS = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256)]
VGG16_CHANNELS += [(512, 256), *[(512, 512)] * 5]


def torch_convs(layers, prefix, *, scaled):
    """OIHW; RGB and divided by the standard deviation, or BGR as in Caffe."""
    arrays = {}
    for layer, (kernel, bias) in layers.items():
        if scaled and layer == "conv1_1":
            std = 255 * np.array([0.229, 0.224, 0.225])[:, None]
            kernel = (kernel[:, :, ::-1] * std).astype(np.float32)
        name = f"{prefix}{VGG16_POSITIONS[layer]}"
        arrays |= {f"{name}.weight": hwio_to_oihw(kernel), f"{name}.bias": bias}
    return arrays


def vgg_files(classifier):
    """(layout, arrays) of one VGG16 in every layout."""
    layers, ((fc6, bias6), (fc7, bias7)) = classifier
    reduced = layers | {
        "conv6": (fc6[::3, ::3, :, ::4], bias6[::4]),
        "conv7": (fc7[None, None, ::4, ::4], bias7[::4]),
    }
    yield "vgg16_reducedfc", torch_convs(reduced, "", scaled=False)
    keras = {
        f"block{layer[4]}_conv{layer[6]}/{name}:0": value
        for layer, arrays in layers.items()
        for name, value in zip(("kernel", "bias"), arrays, strict=True)
    }
    keras |= {"fc1/kernel:0": fc6.reshape(-1, 4096), "fc1/bias:0": bias6}
    yield "keras-vgg16", keras | {"fc2/kernel:0": fc7, "fc2/bias:0": bias7}
    fc6 = np.ascontiguousarray(fc6.transpose(3, 2, 0, 1))
    convs = torch_convs(layers, "features.", scaled=True)
    dense = {"classifier.0.weight": fc6.reshape(4096, -1), "classifier.3.weight": fc7.T}
    yield (
        "torchvision-vgg16",
        convs | dense | {"classifier.0.bias": bias6, "classifier.3.bias": bias7},
    )
    dense = {"pre_logits.fc1.weight": fc6, "pre_logits.fc2.weight": fc7.T[:, :, None, None]}
    yield "timm-vgg16", convs | dense | {"pre_logits.fc1.bias": bias6, "pre_logits.fc2.bias": bias7}


@pytest.mark.slow
def test_all_layouts_of_one_vgg16_fill_the_base_identically(classifier):
    """To the bit; but float32 cannot hold conv1_1's kernel times the deviation, so to one unit."""
    first, scaled = None, []
    for layout, arrays in vgg_files(classifier):
        assert detect_format(arrays) == layout
        imported = import_state_dict(arrays)
        flat = traverse_util.flatten_dict(imported.params["base"])
        assert set(imported.params["base"]) == set(BASE_LAYERS)
        first = first or flat
        assert flat.keys() == first.keys()
        for path, value in flat.items():
            if path == ("conv1_1", "conv", "kernel") and layout.startswith("t"):
                scaled.append(value)
                np.testing.assert_array_max_ulp(value, first[path], 1)
            else:
                np.testing.assert_array_equal(value, first[path], err_msg=f"{layout} {path}")
    np.testing.assert_array_equal(*scaled)


@pytest.mark.slow
def test_reduced_layers_equal_the_classifier_of_timm(classifier):
    """For inputs that are zero at the taps and units that are left out."""
    arrays = dict(vgg_files(classifier))["timm-vgg16"]
    base = import_state_dict(arrays).params["base"]
    rng = np.random.default_rng(1)
    x, y = np.zeros((512, 7, 7), np.float32), np.zeros(4096, np.float32)
    x[:, ::3, ::3], y[::4] = rng.standard_normal((512, 3, 3)), rng.standard_normal(1024)
    theirs = np.einsum("ochw,chw->o", arrays["pre_logits.fc1.weight"], x)[::4]
    ours = np.einsum("hwco,chw->o", base["conv6"]["conv"]["kernel"], x[:, ::3, ::3])
    assert_close(ours, theirs)
    theirs = (arrays["pre_logits.fc2.weight"][:, :, 0, 0] @ y)[::4]
    assert_close(y[::4] @ base["conv7"]["conv"]["kernel"][0, 0], theirs)


# Detection of the layout, and errors.


@pytest.mark.parametrize("layout", SSD_LAYOUTS)
def test_layout_is_detected(layout):
    state = empty_state(layout)
    assert detect_format(state) == layout
    assert detect_format(dict(reversed(state.items()))) == layout


@pytest.mark.parametrize("marker", ["neck.l2_norm.weight", "bbox_head.cls_convs.0.0.weight"])
def test_layout_with_a_missing_array_is_detected(marker):
    state = empty_state("mmdetection")
    del state[marker]
    with pytest.raises(WeightsError, match=f"a.pth lacks {marker}"):
        import_state_dict(state)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("0.weight", (10, 3)), ("features.0.weight", (64, 3, 11, 11)), ("conv1_10/w", (3, 3, 3, 64))],
)
def test_unknown_layout_lists_the_expected_arrays(name, shape):
    """A dense layer, AlexNet and a deeper network are not VGG16."""
    with pytest.raises(WeightsError) as error:
        import_state_dict({name: np.zeros(shape, "f")})
    message = str(error.value)
    assert f"a.pth has an unknown layout, with the arrays {name}; expected one of " in message
    assert "backbone.vgg.0.weight (lufficc)" in message
    assert "neck.l2_norm.weight or bbox_head.cls_convs.0.0.weight or " in message
    assert "pre_logits.fc1.weight [*, *, 7, 7] (timm-vgg16)" in message
    assert all(f"({layout})" in message for layout in LAYOUTS)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("lufficc", "box_head.predictor.reg_headers.5.bias"),
        ("mmdetection", "neck.extra_layers.3.1.conv.weight"),
        ("qfgaohao", "extras.3.2.bias"),
        ("chainercv", "multibox/loc/5/W"),
    ],
)
def test_array_that_does_not_fit_is_named(layout, name):
    state = empty_state(layout)
    value = state[name]
    for change, message in (
        ({name: None}, f"a.pth lacks {name}$"),
        ({"priors": value}, "a.pth has priors, which belongs to no layer of the network"),
        ({name: np.zeros((2, 2), "f")}, rf"a.pth: {name} has shape \(2, 2\) and the network"),
    ):
        changed = {k: v for k, v in (state | change).items() if v is not None}
        with pytest.raises(WeightsError, match=message):
            import_state_dict(changed)
    conf = SSD_LAYOUTS[layout].name(SSD_LAYOUTS[layout].head("conf", 0), "bias")
    with pytest.raises(WeightsError, match=rf"a.pth: {conf} has shape \(14,\); expected 4 boxes"):
        import_state_dict(state | {conf: np.zeros(14, "f")})
    with pytest.raises(WeightsError, match=r"lacks .* state dict of an SSD"):
        import_state_dict({k: v for k, v in state.items() if k != conf})
    with pytest.raises(WeightsError, match=r"--classes names 1 classes and a.pth has 3"):
        import_state_dict(state, classes=("cat",))


def test_unsupported_variant_is_named():
    state = {
        name.replace("neck.l2_norm", "backbone.l2_norm").replace(".0.weight", ".weight"): value
        for name, value in empty_state("mmdetection").items()
        if "extra_layers" not in name
    }
    with pytest.raises(WeightsError, match=r"a.pth has bbox_head.* before 2.14; convert a file"):
        import_state_dict(state)


def test_batch_norm_of_qfgaohao_becomes_a_scale_and_an_offset():
    state = empty_state("qfgaohao")
    del state["source_layer_add_ons.0.scale"]
    rng = np.random.default_rng(0)
    weight, bias, mean, var = rng.uniform(1, 2, (4, 512)).astype(np.float32)
    arrays = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    norm = {f"source_layer_add_ons.0.{k}": v for k, v in arrays.items()}
    norm["source_layer_add_ons.0.num_batches_tracked"] = np.array(3)
    imported = import_state_dict(state | norm)
    assert imported.config.model.feature_norm == "affine"
    x = rng.uniform(-1, 1, 512)
    affine = imported.params["affine_conv4_3"]
    expected = (x - mean) / np.sqrt(var + 1e-5) * weight + bias
    np.testing.assert_allclose(x * affine["scale"] + affine["bias"], expected, atol=1e-5)
    for name, value, message in (
        ("weight", None, "a.pth lacks source_layer_add_ons.0.weight"),
        ("bias", np.zeros(3, "f"), r"source_layer_add_ons.0.bias has shape \(3,\)"),
        ("running_var", -var, "source_layer_add_ons.0.running_var is negative"),
    ):
        changed = state | norm | {f"source_layer_add_ons.0.{name}": value}
        with pytest.raises(WeightsError, match=message):
            import_state_dict({k: v for k, v in changed.items() if v is not None})


def test_heads_are_reordered():
    """Channels of box b and class or offset k, where the value of each is its index."""
    boxes, classes = 4, 5
    kernel = np.arange(boxes * classes, dtype=np.float32)[:, None, None, None]
    path = ("head_conv4_3", "conf", "kernel")
    ours = to_head_order(SSD_LAYOUTS["mmdetection"], path, kernel, classes)
    for b in range(boxes):
        assert ours[classes * b, 0, 0, 0] == classes * b + 4  # background
        for k in range(1, classes):
            assert ours[classes * b + k, 0, 0, 0] == classes * b + k - 1
    bias = np.arange(boxes * 4, dtype=np.float32)
    ours = to_head_order(SSD_LAYOUTS["chainercv"], ("head_conv4_3", "loc", "bias"), bias, classes)
    for b in range(boxes):
        cy, cx, h, w = range(4 * b, 4 * b + 4)
        assert ours[4 * b : 4 * b + 4].tolist() == [cx, cy, w, h]
    for layout in SSD_LAYOUTS:
        for head, value in (("conf", kernel), ("loc", bias)):
            ours = to_head_order(SSD_LAYOUTS[layout], ("head_conv7", head, ""), value, classes)
            changed = (layout, head) in (("mmdetection", "conf"), ("chainercv", "loc"))
            assert np.array_equal(ours, value) != changed
