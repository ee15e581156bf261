"""VGG16 up to conv7, as SSD changes it, and the L2 normalisation of its early sources."""

from collections.abc import Collection

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ssd_jax.config import BASE_LAYERS
from ssd_jax.kernels.conv2d import ConvGeometry, CpuConv
from ssd_jax.kernels.max_pool import max_pool_2x2, max_pool_3x3
from ssd_jax.models.layers import Conv

_CHANNELS = {"conv1": 64, "conv2": 128, "conv3": 256, "conv4": 512, "conv5": 512}


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, in multiples of 8, at least 8."""
    return max(8, round(channels * width / 8) * 8)


def base_window(name: str) -> ConvGeometry:
    """Geometry of a layer of the base; conv6 is the reduced, dilated fc6."""
    return {"conv6": ConvGeometry(1, 6, 6), "conv7": ConvGeometry()}.get(name, ConvGeometry(1, 1))


def base_feature_sizes(image_size: int) -> dict[str, int]:
    """Cells along one side of each layer's map."""
    halvings = {"conv1": 0, "conv2": 1, "conv3": 2}
    sizes = {}
    for name in BASE_LAYERS:
        stage = name.split("_")[0]
        if stage in halvings:
            sizes[name] = image_size >> halvings[stage]
        else:
            # pool3 rounds up: 75 cells become 38.
            conv4 = -(-(image_size >> 2) // 2)
            sizes[name] = conv4 if stage == "conv4" else conv4 // 2
    return sizes


class L2Norm(nn.Module):
    """Scales the channels at each cell to length 1, then each channel by a learned factor.

    Liu et al., ParseNet 2015, section 3.3; SSD, section 3.1: the factor starts at 20 for conv4_3's
    512 channels. With fewer it starts lower, so that a channel is as large as there; narrow
    networks diverge at the usual rates otherwise.
    """

    epsilon: float = 1e-10

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The normalised map, in the type of `x`; the norm is computed in float32."""
        initial = nn.initializers.constant(20.0 * (x.shape[-1] / 512) ** 0.5)
        scale = self.param("scale", initial, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y / norm * scale[None, None, None]).astype(x.dtype)


class ConvBlock(nn.Module):
    """Convolution, batch norm if asked for, ReLU.

    `frozen` layers use the running statistics also while training. The statistics of a batch are
    taken over all devices of `axis_name`.
    """

    features: int
    size: int
    window: ConvGeometry
    batch_norm: bool
    frozen: bool
    dtype: jnp.dtype
    cpu_conv: CpuConv
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B h w O"]:
        """The layer's output for a batch."""
        x = Conv(
            self.features,
            self.size,
            self.window,
            relu=not self.batch_norm,
            dtype=self.dtype,
            cpu_conv=self.cpu_conv,
            name="conv",
        )(x)
        if not self.batch_norm:
            return x
        x = nn.BatchNorm(
            use_running_average=self.frozen or not train,
            momentum=0.9,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="bn",
        )(x)
        return nn.relu(x)


class VGG16Base(nn.Module):
    """VGG16 with a ceil-mode pool3, a 3x3 pool5, and fc6, fc7 as convolutions (SSD, section 3)."""

    width_multiplier: float
    frozen: Collection[str]
    batch_norm: bool
    dtype: jnp.dtype
    cpu_conv: CpuConv
    axis_name: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W 3"], train: bool
    ) -> dict[str, Float[Array, "B h w C"]]:
        """The output of every layer by its name."""
        maps = {}
        stage = "conv1"
        for name in BASE_LAYERS:
            if (next_stage := name.split("_")[0]) != stage:
                if stage == "conv5":
                    x = max_pool_3x3(x)
                elif stage != "conv6":
                    x = max_pool_2x2(x, ceil=stage == "conv3")
                stage = next_stage
            x = ConvBlock(
                features=scaled(_CHANNELS.get(stage, 1024), self.width_multiplier),
                size=1 if name == "conv7" else 3,
                window=base_window(name),
                batch_norm=self.batch_norm,
                frozen=name in self.frozen,
                dtype=self.dtype,
                cpu_conv=self.cpu_conv,
                axis_name=self.axis_name,
                name=name,
            )(x, train)
            maps[name] = x
        return maps
