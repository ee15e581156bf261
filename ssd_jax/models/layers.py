"""Layers of the networks in Flax."""

import math
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ssd_jax.kernels.conv2d import conv2d, conv2d_prepared, prepare_kernel
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.kernels.max_pool import max_pool_2x2, max_pool_3x3
from ssd_jax.models.vgg import ConvLayer, PoolLayer

INFERENCE_CACHE = "inference_cache"
"""Collection of kernels transformed for inference on CPU; see `ssd_jax.kernels.conv2d`."""


def scale_channels(channels: int, width_multiplier: float) -> int:
    """Multiply a number of channels, rounded to a multiple of 8, at least 8."""
    return max(8, round(channels * width_multiplier / 8) * 8)


def conv2d_cached(
    layer: nn.Module,
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    bias: Float[Array, " O"],
    geometry: ConvGeometry,
    relu: bool = False,
) -> Float[Array, "B h w O"]:
    """Compute `conv2d` with the weights of a Flax layer.

    If the collection INFERENCE_CACHE is mutable, store the transformed kernel there; if it is
    present, use it (CPU only, not for gradients).
    """
    if layer.is_mutable_collection(INFERENCE_CACHE) and not layer.is_initializing():
        prepared = prepare_kernel(x, kernel, geometry)
        if prepared is not None:
            layer.put_variable(INFERENCE_CACHE, "kernel", prepared)
    if layer.has_variable(INFERENCE_CACHE, "kernel"):
        prepared = layer.get_variable(INFERENCE_CACHE, "kernel")
        return conv2d_prepared(x, prepared, bias, geometry, relu)
    return conv2d(x, kernel, bias, geometry, relu)


def init_kernel(key: Array, shape: tuple[int, int, int, int]) -> Float[Array, "k k I O"]:
    """Draw a kernel uniformly from +-sqrt(3 / fan_in), as Caffe's "xavier" does.

    The numbers are those of `nn.initializers.variance_scaling(1.0, "fan_in", "uniform")`. They are
    drawn as a flat array, for which XLA compiles the generator three times as fast.
    """
    bound = jnp.sqrt(3 * jnp.float32(1 / math.prod(shape[:-1])))
    numbers = jax.random.uniform(key, (math.prod(shape),), jnp.float32, minval=-1)
    return (bound * numbers).reshape(shape)


class ConvWeights(nn.Module):
    """Kernel and bias of a convolution, float32.

    Initialized by `init_kernel`; the bias is 0.
    """

    features: int
    kernel_size: int = 3

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "k k I O"], Float[Array, " O"]]:
        """Return kernel and bias for an input with this number of channels."""
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", init_kernel, shape)
        return kernel, self.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32)


class Conv(nn.Module):
    """Convolution with bias and optional ReLU; float32 parameters, computed in `dtype`."""

    features: int
    kernel_size: int = 3
    geometry: ConvGeometry = ConvGeometry()
    relu: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Create the weights, with names directly under the layer's."""
        self.weights = ConvWeights(self.features, self.kernel_size)
        nn.share_scope(self, self.weights)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """Apply the layer to a batch."""
        kernel, bias = (w.astype(self.dtype) for w in self.weights(x.shape[-1]))
        return conv2d_cached(self, x.astype(self.dtype), kernel, bias, self.geometry, self.relu)


class ConvBlock(nn.Module):
    """Convolution, optional batch norm, ReLU.

    `frozen` blocks use the running statistics also in training. Batch statistics are computed over
    all devices of `axis_name`.
    """

    features: int
    kernel_size: int
    geometry: ConvGeometry
    batch_norm: bool = False
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B h w O"]:
        """Apply the block to a batch."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.geometry,
            relu=not self.batch_norm,
            dtype=self.dtype,
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


class ConvStack(nn.Module):
    """Sequence of convolution blocks and pools, as listed in a table.

    `block` makes a `ConvBlock` for a convolution of the table; those named in `frozen` are frozen.
    """

    layers: tuple[ConvLayer | PoolLayer, ...]
    block: Callable[..., ConvBlock] = ConvBlock
    width_multiplier: float = 1.0
    frozen: Collection[str] = ()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Return the output of every convolution by its name."""
        outputs = {}
        for layer in self.layers:
            if isinstance(layer, ConvLayer):
                x = outputs[layer.name] = self.block(
                    scale_channels(layer.channels, self.width_multiplier),
                    layer.kernel_size,
                    layer.geometry,
                    frozen=layer.name in self.frozen,
                    name=layer.name,
                )(x, train)
            else:
                x = max_pool_3x3(x) if layer.kernel_size == 3 else max_pool_2x2(x, layer.ceil)
        return outputs


class L2Norm(nn.Module):
    """L2 normalization over channels at each cell, times a learned scale per channel.

    Liu et al., ParseNet, 2015, section 3.3; SSD, section 3.1. The scale starts at 20 for conv4_3's
    512 channels. With fewer channels it starts lower, so that the magnitude of a channel is the
    same; narrow networks diverge at the usual learning rates otherwise.
    """

    epsilon: float = 1e-10

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Normalize a batch; the norm is computed in float32, the result has the type of `x`."""
        initial = nn.initializers.constant(20.0 * (x.shape[-1] / 512) ** 0.5)
        scale = self.param("scale", initial, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y / norm * scale[None, None, None]).astype(x.dtype)


class Affine(nn.Module):
    """Learned scale and offset per channel: batch norm with fixed statistics."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Apply the layer to a batch; computed in float32, the result has the type of `x`."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32) * scale[None, None, None] + bias[None, None, None]
        return y.astype(x.dtype)
