"""Bias and ReLU of a convolution, applied while its products are in the cache."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def epilogue(
    y: Float[Array, "B H W C"], bias: Float[Array, " C"], relu: bool
) -> Float[Array, "B H W C"]:
    """Add the bias to `y`, and apply a ReLU with `relu`."""
    y = y + bias[None, None, None]
    return jnp.maximum(y, 0) if relu else y


def relu_gradient(
    grad: Float[Array, "B H W C"], y: Float[Array, "B H W C"] | None = None
) -> Float[Array, "B H W C"]:
    """Return the gradient for the input of the ReLU whose output is `y`; None: no ReLU."""
    return grad if y is None else jnp.where(y > 0, grad, 0)


def bias_gradient(grad: Float[Array, "B H W C"]) -> Float[Array, " C"]:
    """Return the gradient for the bias, from the gradient before the ReLU."""
    return grad.sum((0, 1, 2))
