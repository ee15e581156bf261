"""The reference implementation's seeded weights and image, in this project's layout."""

import numpy as np
from flax import traverse_util

from ssd_jax.config import BASE_LAYERS, ExtraBlock, ModelConfig, PriorConfig

SEED = 20161208
VOC = ModelConfig(classes=tuple("abcdefghijklmnopqrst"))
SSD512 = ModelConfig(
    classes=VOC.classes,
    image_size=512,
    feature_layers=(*VOC.feature_layers, "conv12_2"),
    extras=(
        ExtraBlock(256, 512, stride=2, padding=1),
        *[ExtraBlock(128, 256, stride=2, padding=1)] * 3,
        ExtraBlock(128, 256, kernel_size=4, padding=1),
    ),
)
SSD512_PRIORS = PriorConfig(
    sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
    steps=(8, 16, 32, 64, 128, 256, 512),
    aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
)


def reference_image():
    """[2, 300, 300, 3], RGB from 0 to 255: input of the reference before the mean is subtracted."""
    rng = np.random.default_rng([SEED, 4])
    return rng.uniform(0, 255, (2, 3, 300, 300)).astype(np.float32).transpose(0, 2, 3, 1)


def our_path(name):
    """The place of a parameter of ssd.pytorch, e.g. vgg.0.weight."""
    room, *index, leaf = name.split(".")
    # Positions in the reference's list of layers, which counts ReLUs and pools too.
    vgg = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33]
    leaf = {"weight": "kernel", "bias": "bias"}[leaf]
    if room == "vgg":
        return ("base", BASE_LAYERS[vgg.index(int(index[0]))], "conv", leaf)
    if room == "L2Norm":
        return ("l2norm_conv4_3", "scale")
    if room == "extras":
        k = int(index[0])
        return ("extras", f"conv{8 + k // 2}_{1 + k % 2}", "conv", leaf)
    return (f"head_{VOC.feature_layers[int(index[0])]}", room, leaf)


def our_layout(value):
    """OIHW to HWIO."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def reference_state(golden):
    """The parameters of the forward case by the reference's names, in its layout."""
    forward = np.load(golden / "forward.npz")
    state = {}
    for k, (name, shape) in enumerate(zip(forward["names"], golden_shapes(forward), strict=True)):
        rng = np.random.default_rng([SEED, 3, k])
        if name == "L2Norm.weight":
            value = np.full(shape, 20, np.float32)
        else:
            value = rng.standard_normal(shape, np.float32)
            fan_in = np.prod(shape[1:])
            scale = 0.01 if name.endswith("bias") else np.sqrt(1 / fan_in)
            value = value * np.float32(scale)
        state[str(name)] = value
    return state


def reference_params(golden):
    """The parameters of the forward case."""
    state = reference_state(golden)
    return traverse_util.unflatten_dict({our_path(n): our_layout(v) for n, v in state.items()})


def golden_shapes(golden):
    """The reference's shapes, worked out from ours."""
    from ssd_jax.models.ssd import make_model, variable_shapes

    tree = traverse_util.flatten_dict(variable_shapes(make_model(VOC, PriorConfig()))["params"])
    for name in golden["names"]:
        shape = tree[our_path(str(name))].shape
        yield (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
