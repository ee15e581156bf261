"""Search for the largest batch that fits in memory."""

from collections.abc import Callable


def find_largest(
    need: Callable[[int], int | None], available: float, *, start: int, unit: int
) -> tuple[int, str]:
    """Find the largest batch that fits in memory.

    Memory grows linearly with the batch: two compiled batches give a line, and the batch that fits
    according to the line is compiled; while it does not fit, the next one is 5 % smaller.

    Args:
        need: compiles a batch and returns its memory (bytes), or None if the compiler reports that
            it does not fit.
        available: memory (bytes).
        start: batch to try first.
        unit: divisor of the batch.

    Returns:
        The batch, 0 if none fits, and how it was found.
    """
    memory: dict[int, int] = {}

    def fits(batch: int) -> bool:
        size = need(batch)
        if size is not None:
            memory[batch] = size
        return size is not None and size <= available

    small = _multiple(start, unit)
    while not fits(small):
        if small == unit:
            return 0, f"not even {unit}"
        small = _multiple(small // 2, unit)
    for other in (2 * small, _multiple(small // 2, unit)):
        if len(memory) < 2:
            fits(other)
    best = max(n for n in memory if memory[n] <= available)
    if len(memory) < 2:
        return best, "compiled"
    a, b = sorted(memory)[:2]
    line = f"a line through {a} and {b}"
    guess = a + (available - memory[a]) / (memory[b] - memory[a]) * (b - a)
    for _ in range(6):
        if (batch := _multiple(int(guess), unit)) <= best:
            break
        if fits(batch):
            return batch, f"{line}, then compiled"
        guess *= 0.95
    return best, f"compiled; {line} led to none larger"


def _multiple(batch: int, unit: int) -> int:
    return max(unit, batch // unit * unit)
