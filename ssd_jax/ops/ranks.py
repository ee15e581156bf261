"""The k largest of many numbers, without a sort."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, UInt32

from ssd_jax.ops.boxes import AnyArray

# Rows that are added up side by side: a CPU adds whole vectors then, not one number to another.
_FOLDS = 32


def float_sort_key(x: Float[AnyArray, "*n"]) -> UInt32[jax.Array, "*n"]:
    """Integers in the order of `x` as float32, 1 or more but for NaN; equal where `x` is.

    Numbers below the smallest normal one, 1e-38, may count as 0, as elsewhere on a CPU.
    """
    x = jnp.asarray(x, jnp.float32)
    # There is a -0, which adding 0 would not remove: a compiler leaves that out.
    bits = jnp.where(x == 0, 0, lax.bitcast_convert_type(x, jnp.uint32))
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def kth_largest(values: UInt32[jax.Array, "n C"], k: AnyArray | int) -> UInt32[jax.Array, " C"]:
    """For each column a number that its k largest values reach and no other does.

    Where the k-th and the next are equal it is their value, which more than k reach. 0 where k is
    more than n. It is found from its highest bit to its lowest, by 32 sums at most instead of a
    sort, which takes a CPU ten times as long.
    """
    return lax.platform_dependent(
        values,
        jnp.asarray(k),
        cpu=partial(_bisect_bits, early_exit=True),
        # A GPU would wait for its host in each turn of a loop of unknown length.
        default=partial(_bisect_bits, early_exit=False),
    )


def _bisect_bits(
    values: UInt32[jax.Array, "n C"], k: jax.Array, *, early_exit: bool
) -> UInt32[jax.Array, " C"]:
    """`kth_largest`, in fewer than 32 turns where `early_exit` allows it.

    The remaining turns can raise the result, but not above the k-th largest value.
    """
    values = jnp.pad(values, ((0, -len(values) % _FOLDS), (0, 0)))
    folded = values.reshape(_FOLDS, -1)
    height = len(values) // _FOLDS

    def count(least: jax.Array) -> jax.Array:
        """How many of each column are `least` or more."""
        side_by_side = jnp.sum(folded >= jnp.tile(least, height)[None], axis=0, dtype=jnp.int32)
        return jnp.sum(side_by_side.reshape(height, -1), axis=0)

    def add_bit(state: tuple) -> tuple:
        bit, least, have = state
        more = least | bit
        with_more = count(more)
        enough = with_more >= k
        return bit >> 1, jnp.where(enough, more, least), jnp.where(enough, with_more, have)

    # Made from the values, not of constants: shard_map wants a loop's state to vary as its input.
    zero = values[0] & 0
    start = (zero[0] | jnp.uint32(1 << 31), zero, zero.astype(jnp.int32) - 1)
    if early_exit:
        return lax.while_loop(lambda s: (s[0] > 0) & jnp.any(s[2] != k), add_bit, start)[1]
    return lax.fori_loop(0, 32, lambda _, state: add_bit(state), start)[1]
