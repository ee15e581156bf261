"""Bit masks of priors: 32 priors to a word, for top-k selection without a sort on CPUs.

On CPU, `lax.top_k` scans scores serially with a heap. Here many scores at a time are compared with
a threshold, 32 results are packed into a word, and prior indices are read from the words.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int32, UInt32

from ssd_jax.kernels.radix_select import float_sort_key, kth_largest

WORD_BITS = 32

BitMask = UInt32[jax.Array, "W C"]
"""Set of priors for each class: prior p is bit p % 32, from the lowest, of word p // 32."""


def pack_bits(mask: Bool[jax.Array, "P C"]) -> BitMask:
    """Pack a boolean mask into words."""
    words = -(-len(mask) // WORD_BITS)
    mask = jnp.pad(mask, ((0, words * WORD_BITS - len(mask)), (0, 0)))
    bits = jnp.uint32(1) << jnp.arange(WORD_BITS, dtype=jnp.uint32)
    # All bits or none instead of `where`, which a CPU would compile to mispredicted branches.
    all_or_none = jnp.uint32(0) - mask.reshape(words, WORD_BITS, -1).astype(jnp.uint32)
    return jnp.sum(all_or_none & bits[None, :, None], axis=1, dtype=jnp.uint32)


def unpack_bits(words: UInt32[jax.Array, " W"], count: int) -> Bool[jax.Array, " count"]:
    """Unpack the first `count` bits of one class's words."""
    bits = (words[:, None] >> jnp.arange(WORD_BITS, dtype=jnp.uint32)[None]) & 1
    return bits.reshape(-1)[:count] == 1


def popcount(mask: BitMask) -> Int32[jax.Array, " C"]:
    """Count the set bits of each class."""
    return jnp.sum(lax.population_count(mask).astype(jnp.int32), axis=0)


def top_k_mask(
    scores: Float[jax.Array, "P C"], candidates: Bool[jax.Array, "P C"], k: int
) -> BitMask:
    """Select the k candidates of each class with the largest scores; the first ones on ties.

    NaN is never selected.
    """
    keys = jnp.where(candidates, float_sort_key(scores), 0)
    threshold = kth_largest(keys, k)[None]
    selected = pack_bits((keys >= threshold) & (keys > 0))

    def drop_last_ties() -> BitMask:
        above = pack_bits(keys > threshold)
        equal = pack_bits((keys == threshold) & (keys > 0))
        slots = k - popcount(above)
        return above | _keep_lowest_bits(equal, slots[None] - _counts_before(equal))

    # If the k-th score equals the next ones, more than k are selected.
    return lax.cond(jnp.any(popcount(selected) > k), drop_last_ties, lambda: selected)


def mask_to_indices(
    mask: BitMask, count: int
) -> tuple[Int32[jax.Array, "C count"], Bool[jax.Array, "C count"]]:
    """Convert each class's set bits to ascending prior indices.

    Returns:
        The indices, 0 for padding, and the slots that are not padding. `count` must be at least
        the number of set bits.
    """
    rank = jnp.arange(count, dtype=jnp.int32)
    before = _counts_before(mask)
    word = jax.vmap(lambda b: jnp.searchsorted(b, rank, side="right"), 1)(before) - 1
    bits, start = (jnp.take_along_axis(x.T, word, axis=1) for x in (mask, before))
    filled = rank[None] < popcount(mask)[:, None]
    index = word * WORD_BITS + _position_of_set_bit(bits, rank[None] - start)
    return jnp.where(filled, index, 0), filled


def _counts_before(mask: BitMask) -> Int32[jax.Array, "W C"]:
    """Count the bits set in all words before each word."""
    counts = lax.population_count(mask).astype(jnp.int32)
    return jnp.cumsum(counts, axis=0) - counts


def _keep_lowest_bits(word: UInt32[jax.Array, "*n"], count: Int32[jax.Array, "*n"]) -> jax.Array:
    """Keep the lowest `count` set bits of a word; none for a negative count."""
    end = _position_of_set_bit(word, jnp.maximum(count, 0)).astype(jnp.uint32)
    below = jnp.where(end < WORD_BITS, (jnp.uint32(1) << end) - 1, jnp.uint32(2**WORD_BITS - 1))
    return word & below


def _position_of_set_bit(
    word: UInt32[jax.Array, "*n"], rank: Int32[jax.Array, "*n"]
) -> Int32[jax.Array, "*n"]:
    """Return the position of the set bit with `rank` set bits below it, or 32."""
    position = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        half = (word >> position.astype(jnp.uint32)) & jnp.uint32((1 << width) - 1)
        count = lax.population_count(half).astype(jnp.int32)
        in_upper = rank >= count
        position = position + jnp.where(in_upper, width, 0)
        rank = rank - jnp.where(in_upper, count, 0)
    bit = (word >> position.astype(jnp.uint32)) & 1
    return jnp.where((rank == 0) & (bit == 1), position, WORD_BITS)
