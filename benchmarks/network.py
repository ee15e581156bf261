"""The training step and the detection of SSD300, side by side with torchvision's ssd300_vgg16.

FLOP/s are of the network's convolutions (31 GMAC an image forward, three times as much with the
gradients), beside those of a matrix product in the same run.
"""

from typing import Any

from benchmarks import ours, torchvision_ssd
from benchmarks.contenders import race
from benchmarks.report import print_race

BATCHES = {"training step": (1, 4, 8), "detection": (1, 8)}
FORWARD_FLOP = 2 * 31e9
_PRODUCT = 3000


def run(rounds: int, batches: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Print the tables and return the figures."""
    peak = race({"matrix product": (ours.matrix_product, _PRODUCT)}, rounds=rounds)
    flop_per_s = 2 * _PRODUCT**3 / peak["matrix product"]["s"]
    figures: dict[str, Any] = {"matrix product, GFLOP/s": flop_per_s / 1e9}
    print(f"a matrix product runs at {flop_per_s / 1e9:.0f} GFLOP/s")
    for what, sizes in (batches or BATCHES).items():
        for batch in sizes:
            if what == "training step":
                programs = {
                    "torchvision": (torchvision_ssd.train, batch),
                    "ours": (ours.train, batch, "auto"),
                    "ours, direct": (ours.train, batch, "direct"),
                }
                if batch == 4:
                    programs["ours, plain"] = (ours.train, batch, "plain")
                work = 3 * FORWARD_FLOP * batch
            else:
                programs = {
                    "torchvision": (torchvision_ssd.detect, batch),
                    "ours": (ours.detect, batch, "auto"),
                    "ours, direct": (ours.detect, batch, "direct"),
                }
                work = FORWARD_FLOP * batch
            found = race(programs, rounds=rounds)
            for times in found.values():
                times["images_per_s"] = batch / times["s"]
                times["of_product"] = work / times["s"] / flop_per_s
            figures[f"{what}, batch {batch}"] = found
            print_race(f"{what}, batch {batch}", found, base="torchvision")
    return figures
