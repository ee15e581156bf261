"""SSD: base, extra layers and heads, from an image to box offsets and class logits.

Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, section 2.1 and figure 2.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, UInt8

from ssd_jax.config import BASE_LAYERS, ConfigError, ModelConfig, PriorConfig
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.models.layers import (
    INFERENCE_CACHE,
    Affine,
    ConvBlock,
    ConvStack,
    ConvWeights,
    L2Norm,
    conv2d_cached,
)
from ssd_jax.models.vgg import VGG16_LAYERS, ConvLayer, extra_layers
from ssd_jax.ops.priors import make_priors, num_priors, priors_per_cell

HEAD_GEOMETRY = ConvGeometry(stride=1, padding=1)
"""Geometry of the heads' 3x3 convolutions."""

NORMALIZED_LAYERS = BASE_LAYERS[:-2]
"""Feature layers that are normalized, because their scale differs from later ones (SSD, 3.1)."""

NORMS: Mapping[str, type[L2Norm] | type[Affine]] = {"l2": L2Norm, "affine": Affine}
"""Normalizations by model.feature_norm; parameters are named l2norm_LAYER or affine_LAYER."""

MAX_PRIORS = 2_000_000
"""Largest number of priors; SSD300 has 8,732. Matching compares each with every object."""


def feature_sizes(config: ModelConfig) -> tuple[int, ...]:
    """Compute the side of each feature layer's output (cells).

    Raises:
        ConfigError: the image is too small for the layers.
    """
    sizes = {}
    size = config.image_size
    for layer in (*VGG16_LAYERS, *extra_layers(config)):
        size = layer.output_size(size)
        if isinstance(layer, ConvLayer):
            sizes[layer.name] = size
    for name in config.feature_layers:
        if sizes[name] < 1:
            raise ConfigError(
                f"model.image_size {config.image_size} leaves no cell for {name}; use a larger "
                "image, or drop the last of model.feature_layers"
            )
    return tuple(sizes[name] for name in config.feature_layers)


def model_priors(model: ModelConfig, priors: PriorConfig) -> Float[np.ndarray, "P 4"]:
    """Make the priors of a network (cxcywh in [0, 1]) in the order of its outputs.

    Raises:
        ConfigError: there are more than MAX_PRIORS, or the image is too small.
    """
    sides = feature_sizes(model)
    count = num_priors(sides, priors.aspect_ratios)
    if count > MAX_PRIORS:
        raise ConfigError(
            f"model.image_size {model.image_size} with model.feature_layers "
            f"{', '.join(model.feature_layers)} has {count:,} priors, above {MAX_PRIORS:,}; "
            "use a smaller image or coarser feature layers"
        )
    return make_priors(
        sides,
        model.image_size,
        sizes=priors.sizes,
        steps=priors.steps,
        aspect_ratios=priors.aspect_ratios,
        clip=priors.clip,
        clip_wh=priors.clip_wh,
    )


class MultiboxHead(nn.Module):
    """3x3 convolution from one feature layer to box offsets and class logits."""

    boxes: int
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W I"]
    ) -> tuple[Float[Array, "B p 4"], Float[Array, "B p C"]]:
        """Return offsets and logits by rows, columns and boxes, the order of the priors."""
        values = {"loc": 4, "conf": self.num_classes}
        weights = [
            ConvWeights(self.boxes * n, name=name)(x.shape[-1]) for name, n in values.items()
        ]
        # One convolution: its input is read once, and the few channels of the offsets alone would
        # leave most of a matrix unit idle.
        kernel, bias = (
            jnp.concatenate(arrays, axis=-1).astype(self.dtype)
            for arrays in zip(*weights, strict=True)
        )
        y = conv2d_cached(self, x.astype(self.dtype), kernel, bias, HEAD_GEOMETRY)
        loc, conf = jnp.split(y, [self.boxes * 4], axis=-1)
        # Not len(x): an exported program may have a batch of any size.
        batch = x.shape[0]
        return loc.reshape(batch, -1, 4), conf.reshape(batch, -1, self.num_classes)


class SSD(nn.Module):
    """SSD network of a config.

    `boxes` is the number of priors per cell of each feature layer. `axis_name` is the pmap axis
    over which batch norm computes its statistics in training.
    """

    config: ModelConfig
    boxes: tuple[int, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "B S S 3"] | Float[Array, "B S S 3"], train: bool = False
    ) -> tuple[Float[Array, "B P 4"], Float[Array, "B P C"]]:
        """Return float32 box offsets and class logits (background first) of RGB images (0-255)."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        mean = jnp.asarray(config.image_mean, jnp.float32)[None, None, None]
        x = (images.astype(jnp.float32) - mean).astype(dtype)

        block = partial(
            ConvBlock, batch_norm=config.batch_norm, dtype=dtype, axis_name=self.axis_name
        )
        stack = partial(ConvStack, block=block, width_multiplier=config.width_multiplier)
        features = stack(VGG16_LAYERS, frozen=config.frozen_layers, name="base")(x, train)
        features |= stack(extra_layers(config), name="extras")(features["conv7"], train)

        loc, conf = [], []
        for name, boxes in zip(config.feature_layers, self.boxes, strict=True):
            x = features[name]
            if name in NORMALIZED_LAYERS:
                norm = NORMS[config.feature_norm]
                x = norm(name=f"{norm.__name__.lower()}_{name}")(x)
            head = MultiboxHead(boxes, config.num_classes, dtype, name=f"head_{name}")
            offsets, logits = head(x)
            loc.append(offsets)
            conf.append(logits)
        return (
            jnp.concatenate(loc, axis=1).astype(jnp.float32),
            jnp.concatenate(conf, axis=1).astype(jnp.float32),
        )


def make_model(model: ModelConfig, priors: PriorConfig, axis_name: str | None = None) -> SSD:
    """Make the network that predicts the boxes of `priors`."""
    return SSD(model, priors_per_cell(priors.aspect_ratios), axis_name)


def init_variables(model: SSD, key: Array) -> Mapping[str, Any]:
    """Draw the initial parameters and batch statistics."""
    size = model.config.image_size
    return jax.jit(model.init)(key, jnp.zeros((1, size, size, 3), jnp.uint8))


def variable_shapes(model: SSD) -> Mapping[str, Any]:
    """Return the shapes of the parameters and batch statistics."""
    size = model.config.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), "uint8")
    return jax.eval_shape(model.init, jax.random.key(0), image)


def make_inference_cache(model: SSD, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the collection INFERENCE_CACHE for the variables; empty if no layer uses it."""
    size = model.config.image_size
    image = jnp.zeros((1, size, size, 3), jnp.uint8)
    return model.apply(variables, image, mutable=[INFERENCE_CACHE])[1]
