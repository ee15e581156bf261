"""Training step and detection of SSD300 against torchvision's ssd300_vgg16.

The share of matmul throughput is the FLOP of the convolutions (31 GMAC per image, three times that
with gradients) divided by the time and by the throughput of a matrix product in the same run.
"""

from typing import Any

from benchmarks import ssd_jax_workloads, torchvision_ssd
from benchmarks.report import print_comparison
from benchmarks.runner import compare

BATCHES = {"training step": (1, 4, 8), "detection": (1, 8)}
FORWARD_FLOP = 2 * 31e9
_MATRIX_SIDE = 3000


def run(rounds: int, batches: dict[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """Print the tables and return the figures."""
    product = compare(
        {"matrix product": (ssd_jax_workloads.matrix_product, _MATRIX_SIDE)}, rounds=rounds
    )
    flop_per_s = 2 * _MATRIX_SIDE**3 / product["matrix product"]["s"]
    figures: dict[str, Any] = {"matrix product, GFLOP/s": flop_per_s / 1e9}
    print(f"matrix product: {flop_per_s / 1e9:.0f} GFLOP/s")
    for workload, sizes in (batches or BATCHES).items():
        training = workload == "training step"
        peer, program = (
            (torchvision_ssd.train, ssd_jax_workloads.train)
            if training
            else (torchvision_ssd.detect, ssd_jax_workloads.detect)
        )
        for batch in sizes:
            programs = {
                "torchvision": (peer, batch),
                "ssd_jax": (program, batch, "auto"),
                "ssd_jax, direct": (program, batch, "direct"),
            }
            if training and batch == 4:
                programs["ssd_jax, plain"] = (program, batch, "plain")
            flop = (3 if training else 1) * FORWARD_FLOP * batch
            rows = compare(programs, rounds=rounds)
            for row in rows.values():
                row["images_per_s"] = batch / row["s"]
                row["matmul_share"] = flop / row["s"] / flop_per_s
            figures[f"{workload}, batch {batch}"] = rows
            print_comparison(f"{workload}, batch {batch}", rows, base="torchvision")
    return figures
