"""The network against recorded outputs of ssd.pytorch, published sizes and shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssd_jax.config import BASE_LAYERS, ConfigError, ModelConfig, PriorConfig
from ssd_jax.models.ssd import feature_sizes, init_variables, make_model, model_priors
from ssd_jax.models.vgg import VGG16_LAYERS, ConvLayer
from tests.models.reference import SSD512, SSD512_PRIORS, VOC, reference_image, reference_params


def count(config, priors):
    model = make_model(config, priors)
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), "uint8")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_ssd300_has_the_published_size():
    assert count(VOC, PriorConfig()) == 26_285_486
    assert feature_sizes(VOC) == (38, 19, 10, 5, 3, 1)
    assert len(model_priors(VOC, PriorConfig())) == 8732


def test_ssd512_has_one_more_extra_block_and_feature_layer_than_ssd300():
    assert feature_sizes(SSD512) == (64, 32, 16, 8, 4, 2, 1)
    assert len(model_priors(SSD512, SSD512_PRIORS)) == 24_564

    def conv(k, i, o):
        return k * k * i * o + o

    def head(boxes, channels):
        return conv(3, channels, boxes * 25)

    # Layers 9_2 and 10_2 only change stride and padding; conv11 has the same size, conv12 a 4x4
    # kernel; the source conv10_2 has 6 boxes instead of 4, and conv12_2 brings 4 more.
    more = conv(1, 256, 128) + conv(4, 128, 256)
    more += head(6, 256) - head(4, 256) + head(4, 256)
    assert count(SSD512, SSD512_PRIORS) == 26_285_486 + more == 27_188_676


@pytest.mark.slow
def test_outputs_equal_ssd_pytorch(golden):
    expected = np.load(golden / "forward.npz")
    model = make_model(VOC, PriorConfig())
    image = jnp.asarray(reference_image())
    loc, conf = jax.jit(model.apply)({"params": reference_params(golden)}, image)
    assert loc.shape == (2, 8732, 4)
    assert conf.shape == (2, 8732, 21)
    index = expected["prior_index"]
    for ours, theirs in ((loc, expected["loc"]), (conf, expected["conf"])):
        ours = np.asarray(ours)[:, index]
        # Measured: 2e-6 of the scale with either convolution path.
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_outputs_follow_the_order_of_the_priors():
    """A head with one bias per box gives each prior the bias of its box."""
    config = ModelConfig(
        classes=("a",),
        image_size=64,
        width_multiplier=0.125,
        feature_layers=("conv4_3", "conv7"),
        extras=(),
    )
    priors = PriorConfig(sizes=(16, 32, 64), steps=(8, 16), aspect_ratios=((2,), (2, 3)))
    model = make_model(config, priors)
    params = init_variables(model, jax.random.key(0))["params"]
    flat = traverse_util.flatten_dict(params)
    for name, boxes in (("conv4_3", 4), ("conv7", 6)):
        path = (f"head_{name}", "loc")
        flat[(*path, "kernel")] = jnp.zeros_like(flat[(*path, "kernel")])
        shapes = model_priors(config, priors)[0 if boxes == 4 else 256 :][:boxes, 2:]
        bias = np.concatenate([np.zeros((boxes, 2)), np.log(shapes)], axis=1)
        flat[(*path, "bias")] = jnp.asarray(bias.reshape(-1), jnp.float32)
    loc, _ = model.apply({"params": traverse_util.unflatten_dict(flat)}, jnp.zeros((1, 64, 64, 3)))
    sizes = np.log(model_priors(config, priors)[:, 2:])
    np.testing.assert_allclose(loc[0, :, 2:], sizes, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_network_returns_float32():
    config = dataclasses.replace(
        VOC,
        image_size=96,
        width_multiplier=0.125,
        feature_layers=("conv4_3",),
        extras=(),
        dtype="bfloat16",
    )
    priors = PriorConfig(sizes=(30, 60), steps=(), aspect_ratios=((2,),))
    model = make_model(config, priors)
    variables = init_variables(model, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    image = jax.random.uniform(jax.random.key(1), (1, 96, 96, 3), maxval=255)
    full = make_model(dataclasses.replace(config, dtype="float32"), priors)
    low, high = (jax.jit(m.apply)(variables, image) for m in (model, full))
    for a, b in zip(low, high, strict=True):
        assert a.dtype == jnp.float32
        assert 0 < float(jnp.abs(a - b).max()) < 0.05 * float(jnp.abs(b).max())


def test_image_too_small_for_the_layers_is_reported():
    config = dataclasses.replace(VOC, image_size=128)
    with pytest.raises(ConfigError, match=r"model.image_size 128 leaves no cell for conv10_2"):
        feature_sizes(config)


@pytest.mark.parametrize("size", [96, 100, 130, 300, 301])
def test_feature_sizes_are_the_sizes_of_the_maps(size):
    config = ModelConfig(
        classes=("a",),
        image_size=size,
        width_multiplier=0.125,
        feature_layers=("conv4_3", "conv7", "conv8_2"),
    )
    priors = PriorConfig(sizes=(20, 40, 60, 80), steps=(), aspect_ratios=((),) * 3)
    model = make_model(config, priors)
    image = jax.ShapeDtypeStruct((1, size, size, 3), "uint8")
    (loc, _), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert loc.shape[1] == len(model_priors(config, priors))


def test_convolutions_of_the_table_are_the_base_layers_of_the_config():
    names = [layer.name for layer in VGG16_LAYERS if isinstance(layer, ConvLayer)]
    assert tuple(names) == BASE_LAYERS
