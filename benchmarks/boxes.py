"""Post-processing against torchvision's; matching and loss against the reference's steps."""

from typing import Any

from benchmarks import case, literal, ours, torchvision_ssd
from benchmarks.contenders import race
from benchmarks.report import print_race
from ssd_jax.models.ssd import model_priors

BATCH = 32


def run(rounds: int) -> dict[str, Any]:
    """Print the tables and return the figures."""
    config = case.voc_config()
    priors = model_priors(config.model, config.priors)
    figures = {}
    for batch, trained in ((1, False), (1, True), (8, False), (8, True)):
        outputs = case.predictions(batch, len(priors), background=12 if trained else 5)
        found = race(
            {
                "torchvision": (torchvision_ssd.post_process, *outputs),
                "ours": (ours.suppress, *outputs),
            },
            rounds=rounds,
        )
        name = f"post-processing, batch {batch}, {'trained' if trained else 'hardly trained'}"
        figures[name] = found
        print_race(name, found, base="torchvision")
    given = (*case.predictions(BATCH, len(priors)), *case.objects(BATCH, config.data.max_objects))
    found = race(
        {
            "reference, by loops": (literal.match_and_loss_by_loops, *given, priors),
            "reference, PyTorch": (literal.match_and_loss, *given, priors),
            "ours": (ours.match_and_loss, *given),
        },
        rounds=rounds,
    )
    figures[f"matching and loss, batch {BATCH}"] = found
    print_race(f"matching and loss, batch {BATCH}", found, base="reference, by loops")
    return figures
