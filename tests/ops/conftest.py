"""Shared fixtures: ssd.pytorch's priors and the numbers of Caffe's unit tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd_jax.ops.priors import make_priors


@pytest.fixture(scope="session")
def caffe(fixtures: Path) -> dict[str, Any]:
    """Return the numbers of Caffe's unit tests by the first words of their headings."""
    values = json.loads((fixtures / "ssd-caffe-numbers" / "values.json").read_text())
    return {heading.split(" (")[0]: value for heading, value in values.items()}


@pytest.fixture(scope="session")
def voc_priors() -> np.ndarray:
    """Return SSD300's priors for VOC, clipped as in ssd.pytorch: [8732, 4] cxcywh."""
    return make_priors(
        (38, 19, 10, 5, 3, 1),
        300,
        sizes=(30, 60, 111, 162, 213, 264, 315),
        steps=(8, 16, 32, 64, 100, 300),
        aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        clip=True,
    )
