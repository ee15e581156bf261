"""The candidates of each class, for a CPU: priors chosen by bits instead of a sort of all.

`top_k` takes a CPU a heap and one score after the other. Here all scores are compared with a
threshold many at once, 32 priors become a word of bits, and the priors are read from the words.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int32, UInt32

from ssd_jax.ops.ranks import float_sort_key, kth_largest

BITS = 32

Words = UInt32[jax.Array, "W C"]
"""A choice of priors for each class: prior p is bit p % 32, from the lowest, of word p // 32."""


def pack_bits(chosen: Bool[jax.Array, "P C"]) -> Words:
    """The choice as words."""
    words = -(-len(chosen) // BITS)
    chosen = jnp.pad(chosen, ((0, words * BITS - len(chosen)), (0, 0)))
    bits = jnp.uint32(1) << jnp.arange(BITS, dtype=jnp.uint32)
    # All bits or none, and no `where`: a CPU would jump at each, and guess wrong.
    every = jnp.uint32(0) - chosen.reshape(words, BITS, -1).astype(jnp.uint32)
    return jnp.sum(every & bits[None, :, None], axis=1, dtype=jnp.uint32)


def unpack_bits(word: UInt32[jax.Array, " W"], count: int) -> Bool[jax.Array, " count"]:
    """The first `count` bits of the words, each from its lowest."""
    bits = (word[:, None] >> jnp.arange(BITS, dtype=jnp.uint32)[None]) & 1
    return bits.reshape(-1)[:count] == 1


def popcount(words: Words) -> Int32[jax.Array, " C"]:
    """How many priors of each class are chosen."""
    return jnp.sum(lax.population_count(words).astype(jnp.int32), axis=0)


def top_k_mask(
    scores: Float[jax.Array, "P C"], candidate: Bool[jax.Array, "P C"], count: int
) -> Words:
    """The `count` candidates of each class with the best scores; of equal ones the first."""
    keys = jnp.where(candidate, float_sort_key(scores), 0)
    least = kth_largest(keys, count)[None]
    chosen = pack_bits((keys >= least) & (keys > 0))

    def leave_out_last() -> Words:
        better, equal = pack_bits(keys > least), pack_bits((keys == least) & (keys > 0))
        left = count - popcount(better)
        return better | _first_bits(equal, left[None] - _counts_before(equal))

    # Where the last of them is equal to others there are too many.
    return lax.cond(jnp.any(popcount(chosen) > count), leave_out_last, lambda: chosen)


def mask_to_indices(
    words: Words, count: int
) -> tuple[Int32[jax.Array, "C count"], Bool[jax.Array, "C count"]]:
    """The priors chosen of each class, rising, and which of the places have one.

    There must be no more than `count`. A place without one has 0 for a prior.
    """
    rank = jnp.arange(count, dtype=jnp.int32)
    before = _counts_before(words)
    word = jax.vmap(lambda b: jnp.searchsorted(b, rank, side="right"), 1)(before) - 1
    bits, start = (jnp.take_along_axis(x.T, word, axis=1) for x in (words, before))
    filled = rank[None] < popcount(words)[:, None]
    return jnp.where(filled, word * BITS + _place_of_bit(bits, rank[None] - start), 0), filled


def _counts_before(words: Words) -> Int32[jax.Array, "W C"]:
    """How many bits are set in the words before each."""
    counts = lax.population_count(words).astype(jnp.int32)
    return jnp.cumsum(counts, axis=0) - counts


def _first_bits(word: UInt32[jax.Array, "*n"], count: Int32[jax.Array, "*n"]) -> jax.Array:
    """The word with only the lowest `count` of its bits that are set; none below 1."""
    end = _place_of_bit(word, jnp.maximum(count, 0)).astype(jnp.uint32)
    below = jnp.where(end < BITS, (jnp.uint32(1) << end) - 1, jnp.uint32(2**BITS - 1))
    return word & below


def _place_of_bit(
    word: UInt32[jax.Array, "*n"], rank: Int32[jax.Array, "*n"]
) -> Int32[jax.Array, "*n"]:
    """The place of the set bit that has `rank` set bits below it, 32 where there is none."""
    place = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        part = (word >> place.astype(jnp.uint32)) & jnp.uint32((1 << width) - 1)
        lower = lax.population_count(part).astype(jnp.int32)
        further = rank >= lower
        place, rank = place + jnp.where(further, width, 0), rank - jnp.where(further, lower, 0)
    here = (word >> place.astype(jnp.uint32)) & 1
    return jnp.where((rank == 0) & (here == 1), place, BITS)
