"""k-th largest of many numbers without a sort, by radix selection."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, UInt32

from ssd_jax.ops.boxes import AnyArray

# Rows that are summed side by side, so that a CPU adds whole vectors instead of single numbers.
_FOLDS = 32


def float_sort_key(x: Float[AnyArray, "*n"]) -> UInt32[jax.Array, "*n"]:
    """Map floats to integers of the same order, 1 or more except for NaN.

    -0 and 0 get the same key. Subnormal numbers (below 1e-38) may count as 0, as elsewhere on a
    CPU.
    """
    x = jnp.asarray(x, jnp.float32)
    # `where` maps -0 to 0; adding 0 would not, because compilers remove the addition.
    bits = jnp.where(x == 0, 0, lax.bitcast_convert_type(x, jnp.uint32))
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def kth_largest(values: UInt32[jax.Array, "n C"], k: AnyArray | int) -> UInt32[jax.Array, " C"]:
    """Return a threshold of each column that its k largest values reach and no other value does.

    If the k-th and the next values are equal, the threshold is their value, and more than k values
    reach it. It is 0 if k is above n. `k` is a number or one per column.

    The threshold is built from the highest bit to the lowest with one count per bit. On CPU this is
    ten times as fast as a sort.
    """
    return lax.platform_dependent(
        values,
        jnp.asarray(k),
        cpu=partial(_bisect_bits, early_exit=True),
        # In a loop of unknown length a GPU would synchronise with the host at every iteration.
        default=partial(_bisect_bits, early_exit=False),
    )


def _bisect_bits(
    values: UInt32[jax.Array, "n C"], k: jax.Array, *, early_exit: bool
) -> UInt32[jax.Array, " C"]:
    """Compute `kth_largest`; with `early_exit`, stop once exactly k values reach the threshold.

    Further iterations could raise the threshold, but not above the k-th largest value.
    """
    values = jnp.pad(values, ((0, -len(values) % _FOLDS), (0, 0)))
    folded = values.reshape(_FOLDS, -1)
    height = len(values) // _FOLDS

    def count_reaching(threshold: jax.Array) -> jax.Array:
        reaching = folded >= jnp.tile(threshold, height)[None]
        side_by_side = jnp.sum(reaching, axis=0, dtype=jnp.int32)
        return jnp.sum(side_by_side.reshape(height, -1), axis=0)

    def add_bit(state: tuple) -> tuple:
        bit, threshold, count = state
        higher = threshold | bit
        higher_count = count_reaching(higher)
        enough = higher_count >= k
        threshold = jnp.where(enough, higher, threshold)
        return bit >> 1, threshold, jnp.where(enough, higher_count, count)

    # Made from the values, not from constants: shard_map requires that a loop's state varies like
    # its input.
    zero = values[0] & 0
    start = (zero[0] | jnp.uint32(1 << 31), zero, zero.astype(jnp.int32) - 1)
    if early_exit:
        return lax.while_loop(lambda s: (s[0] > 0) & jnp.any(s[2] != k), add_bit, start)[1]
    return lax.fori_loop(0, 32, lambda _, state: add_bit(state), start)[1]
