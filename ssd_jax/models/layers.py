"""Convolution layers in Flax."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from ssd_jax.kernels.conv2d import (
    ConvGeometry,
    CpuConv,
    conv2d,
    conv_by_matrices,
    kernel_matrices,
)

INFERENCE_CACHE = "prepared"
"""A collection of what a CPU can compute from the weights once for many batches."""


def conv2d_cached(
    layer: nn.Module,
    x: Float[Array, "B H W I"],
    kernel: Float[Array, "k k I O"],
    bias: Float[Array, " O"],
    window: ConvGeometry,
    relu: bool = False,
    cpu_conv: CpuConv = "auto",
) -> Float[Array, "B h w O"]:
    """`conv2d` with the weights of a layer.

    If the collection INFERENCE_CACHE is mutable, store the transformed kernel there; if it is
    present, use it (CPU only, not for gradients).
    """
    if layer.is_mutable_collection(INFERENCE_CACHE) and not layer.is_initializing():
        matrices = kernel_matrices(x, kernel, window, cpu_conv)
        if matrices is not None:
            layer.put_variable(INFERENCE_CACHE, "kernel", matrices)
    if layer.has_variable(INFERENCE_CACHE, "kernel"):
        matrices = layer.get_variable(INFERENCE_CACHE, "kernel")
        return conv_by_matrices(x, matrices, bias, window=window, relu=relu)
    return conv2d(x, kernel, bias, window, relu, cpu_conv)


class ConvWeights(nn.Module):
    """The parameters of a convolution, float32.

    New layers start as Caffe's "xavier": uniform in +-sqrt(3 / fan_in), bias 0.
    """

    features: int
    size: int = 3

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "k k I O"], Float[Array, " O"]]:
        """Kernel and bias for an input of so many channels."""
        shape = (self.size, self.size, channels, self.features)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        kernel = self.param("kernel", init, shape, jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32)


class Conv(nn.Module):
    """A convolution with a bias and perhaps a ReLU; parameters float32, computed in `dtype`."""

    features: int
    size: int = 3
    window: ConvGeometry = ConvGeometry()
    relu: bool = False
    dtype: jnp.dtype = jnp.float32
    cpu_conv: CpuConv = "auto"

    def setup(self) -> None:
        """Its weights, under its own name."""
        self.weights = ConvWeights(self.features, self.size)
        nn.share_scope(self, self.weights)

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        """The layer's output for a batch."""
        kernel, bias = (w.astype(self.dtype) for w in self.weights(x.shape[-1]))
        x = x.astype(self.dtype)
        return conv2d_cached(self, x, kernel, bias, self.window, self.relu, self.cpu_conv)
