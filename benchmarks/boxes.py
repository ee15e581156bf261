"""Post-processing against torchvision's; matching and loss against ssd.pytorch's."""

from typing import Any

from benchmarks import reference_loss, ssd_jax_workloads, torchvision_ssd
from benchmarks.inputs import objects, predictions, voc_config
from benchmarks.report import print_comparison
from benchmarks.runner import compare
from ssd_jax.models.ssd import model_priors

BATCH = 32


def run(rounds: int) -> dict[str, Any]:
    """Print the tables and return the figures."""
    config = voc_config()
    priors = model_priors(config.model, config.priors)
    figures = {}
    for batch, trained in ((1, False), (1, True), (8, False), (8, True)):
        outputs = predictions(batch, len(priors), background=12 if trained else 5)
        name = f"post-processing, batch {batch}, {'trained' if trained else 'nearly untrained'}"
        figures[name] = compare(
            {
                "torchvision": (torchvision_ssd.post_process, *outputs),
                "ssd_jax": (ssd_jax_workloads.suppress, *outputs),
            },
            rounds=rounds,
        )
        print_comparison(name, figures[name], base="torchvision")
    inputs = predictions(BATCH, len(priors)), objects(BATCH, config.data.max_objects)
    name, base = f"matching and loss, batch {BATCH}", "reference, Python loops"
    figures[name] = compare(
        {
            base: (reference_loss.match_and_loss_by_loops, *inputs, priors),
            "reference, PyTorch": (reference_loss.match_and_loss, *inputs, priors),
            "ssd_jax": (ssd_jax_workloads.match_and_loss, *inputs),
        },
        rounds=rounds,
    )
    print_comparison(name, figures[name], base=base)
    return figures
