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


def epilogue_gradients(
    y: Float[Array, "B H W C"] | None, grad: Float[Array, "B H W C"]
) -> tuple[Float[Array, "B H W C"], Float[Array, " C"]]:
    """The gradients of `epilogue` for the products and the bias, from that for its result.

    `y` is that result, or None where there was no ReLU.
    """
    grad = grad if y is None else jnp.where(y > 0, grad, 0)
    return grad, grad.sum((0, 1, 2))
