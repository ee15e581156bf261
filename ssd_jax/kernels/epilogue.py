"""What follows a convolution's products while they are in the cache: the bias and a ReLU."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def epilogue(
    y: Float[Array, "B H W C"], bias: Float[Array, " C"], relu: bool
) -> Float[Array, "B H W C"]:
    """`y` plus the bias; with `relu`, what is below 0 becomes 0."""
    y = y + bias[None, None, None]
    return jnp.maximum(y, 0) if relu else y


def relu_gradient(
    grad: Float[Array, "B H W C"], y: Float[Array, "B H W C"] | None = None
) -> Float[Array, "B H W C"]:
    """The gradient for what the ReLU of `epilogue` made `y` of; without a ReLU it is `grad`."""
    return grad if y is None else jnp.where(y > 0, grad, 0)


def bias_gradient(grad: Float[Array, "B H W C"]) -> Float[Array, " C"]:
    """The gradient for the bias, from that before the ReLU."""
    return grad.sum((0, 1, 2))
