"""SSD: base, extra layers and heads; an image to box offsets and class scores.

Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, section 2.1 and figure 2.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, UInt8

from ssd_jax.config import BASE_LAYERS, ConfigError, Extra, ModelConfig, PriorConfig
from ssd_jax.kernels.conv2d import ConvGeometry, CpuConv
from ssd_jax.models.layers import ConvWeights, conv2d_cached
from ssd_jax.models.vgg import ConvBlock, L2Norm, VGG16Base, base_feature_sizes, scaled
from ssd_jax.ops.priors import make_priors, num_priors, priors_per_cell


def feature_sizes(config: ModelConfig) -> tuple[int, ...]:
    """Cells along one side of each source's map.

    Raises ConfigError where the image is too small for the layers.
    """
    sizes = base_feature_sizes(config.image_size)
    size = sizes["conv7"]
    for k, (_, _, kernel, stride, padding) in enumerate(config.extras):
        size = ConvGeometry(stride, padding).output_size(size, kernel)
        sizes[f"conv{8 + k}_2"] = size
    for name in config.feature_layers:
        if sizes[name] < 1:
            raise ConfigError(
                f"model.image_size {config.image_size} leaves no cell for {name}; use a larger "
                "image, or drop the last of model.feature_layers"
            )
    return tuple(sizes[name] for name in config.feature_layers)


MAX_PRIORS = 2_000_000
"""Largest number of priors; SSD300 has 8,732. Matching compares each with every object."""


def model_priors(model: ModelConfig, priors: PriorConfig) -> Float[np.ndarray, "P 4"]:
    """The priors of a network (cx, cy, w, h in [0, 1]), in the order of its outputs.

    Raises ConfigError where they are more than MAX_PRIORS.
    """
    sides = feature_sizes(model)
    count = num_priors(sides, priors.aspect_ratios)
    if count > MAX_PRIORS:
        raise ConfigError(
            f"model.image_size {model.image_size} with model.feature_layers "
            f"{', '.join(model.feature_layers)} "
            f"has {count:,} priors, above {MAX_PRIORS:,}; use a smaller image or coarser sources"
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


class ExtraLayers(nn.Module):
    """The layers after the base: pairs of a 1x1 and a wider convolution."""

    extras: tuple[Extra, ...]
    width_multiplier: float
    batch_norm: bool
    dtype: jnp.dtype
    cpu_conv: CpuConv
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> dict[str, Float[Array, "B h w C"]]:
        """The output of the second layer of each pair, by its name from conv8_2 on."""
        maps = {}

        def block(x: Array, name: str, channels: int, size: int, window: ConvGeometry) -> Array:
            return ConvBlock(
                features=scaled(channels, self.width_multiplier),
                size=size,
                window=window,
                batch_norm=self.batch_norm,
                frozen=False,
                dtype=self.dtype,
                cpu_conv=self.cpu_conv,
                axis_name=self.axis_name,
                name=name,
            )(x, train)

        for k, (squeeze, channels, size, stride, padding) in enumerate(self.extras):
            x = block(x, f"conv{8 + k}_1", squeeze, 1, ConvGeometry())
            x = block(x, f"conv{8 + k}_2", channels, size, ConvGeometry(stride, padding))
            maps[f"conv{8 + k}_2"] = x
        return maps


class MultiboxHead(nn.Module):
    """A 3x3 convolution to the box offsets and class scores of one source."""

    boxes: int
    num_classes: int
    dtype: jnp.dtype
    cpu_conv: CpuConv

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B p 4"], Float[Array, "B p K"]]:
        """Offsets and class logits, flattened by rows, columns and boxes: the priors' order."""
        parts = {"loc": 4, "conf": self.num_classes}
        weights = [
            ConvWeights(self.boxes * values, name=name)(x.shape[-1])
            for name, values in parts.items()
        ]
        # One convolution: its input is read once, and the few channels of the offsets alone would
        # leave most of a matrix unit idle.
        kernel, bias = (
            jnp.concatenate(arrays, axis=-1).astype(self.dtype)
            for arrays in zip(*weights, strict=True)
        )
        x = x.astype(self.dtype)
        y = conv2d_cached(self, x, kernel, bias, ConvGeometry(1, 1), cpu_conv=self.cpu_conv)
        outputs = jnp.split(y, [self.boxes * 4], axis=-1)
        offsets, logits = (
            output.reshape(x.shape[0], -1, values)
            for output, values in zip(outputs, parts.values(), strict=True)
        )
        return offsets, logits


class SSD(nn.Module):
    """The whole network as the config describes it.

    `axis_name` is the pmap axis over which batch norm takes its statistics while training.
    """

    config: ModelConfig
    boxes: tuple[int, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "B S S 3"] | Float[Array, "B S S 3"], train: bool = False
    ) -> tuple[Float[Array, "B P 4"], Float[Array, "B P K"]]:
        """Box offsets and class logits (background first) in float32 for RGB images of 0 to 255."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        mean = jnp.asarray(config.image_mean, jnp.float32)[None, None, None]
        x = (images.astype(jnp.float32) - mean).astype(dtype)
        maps = VGG16Base(
            width_multiplier=config.width_multiplier,
            frozen=config.frozen_layers,
            batch_norm=config.batch_norm,
            dtype=dtype,
            cpu_conv=config.cpu_conv,
            axis_name=self.axis_name,
            name="base",
        )(x, train)
        # Extra layers after the last source would get no gradient and only cost memory.
        extras = config.extras[: _extras_used(config)]
        maps |= ExtraLayers(
            extras=extras,
            width_multiplier=config.width_multiplier,
            batch_norm=config.batch_norm,
            dtype=dtype,
            cpu_conv=config.cpu_conv,
            axis_name=self.axis_name,
            name="extras",
        )(maps["conv7"], train)
        loc, conf = [], []
        for name, boxes in zip(config.feature_layers, self.boxes, strict=True):
            x = maps[name]
            if name in BASE_LAYERS[:-2]:
                # Their values are on another scale than the later sources' (section 3.1).
                x = L2Norm(name=f"l2norm_{name}")(x)
            head = MultiboxHead(
                boxes, config.num_classes, dtype, config.cpu_conv, name=f"head_{name}"
            )
            offsets, logits = head(x)
            loc.append(offsets)
            conf.append(logits)
        return (
            jnp.concatenate(loc, axis=1).astype(jnp.float32),
            jnp.concatenate(conf, axis=1).astype(jnp.float32),
        )


def _extras_used(config: ModelConfig) -> int:
    last = config.feature_layers[-1]
    return 0 if last in BASE_LAYERS else int(last.removeprefix("conv").removesuffix("_2")) - 7


def make_model(model: ModelConfig, priors: PriorConfig, axis_name: str | None = None) -> SSD:
    """The network with as many boxes a cell as the priors have."""
    return SSD(model, priors_per_cell(priors.aspect_ratios), axis_name)
