"""What is exported: a network, and its detections as a function of images."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.checkpoints.reader import find_checkpoint, read_config, restore_model
from ssd_jax.config import Config
from ssd_jax.inference.detect import detect_step
from ssd_jax.models.ssd import SSD, make_model, model_priors
from ssd_jax.ops.nms import Detections


@dataclass(frozen=True)
class Network:
    """A trained network as it is exported: float32, convolutions as the compiler has them."""

    checkpoint: Path
    config: Config
    model: SSD
    variables: dict[str, Any]
    priors: np.ndarray
    """float32 [P, 4], cx, cy, width, height as fractions."""

    @classmethod
    def from_checkpoint(
        cls, path: Path, score_threshold: float, *, best: bool = False
    ) -> "Network":
        """The network of a run or checkpoint. Raises UserError where it cannot be read."""
        checkpoint = find_checkpoint(path, best=best)
        config = read_config(checkpoint)
        _, variables = restore_model(checkpoint, config)
        # The CPU's own path is for training; a type other than float32 for accelerators.
        config = replace(
            config,
            model=replace(config.model, cpu_conv="direct", dtype="float32"),
            eval=replace(config.eval, score_threshold=score_threshold),
        )
        return cls(
            checkpoint,
            config,
            make_model(config.model, config.priors),
            variables,
            model_priors(config.model, config.priors),
        )

    @property
    def size(self) -> int:
        """Side of the input in pixels."""
        return self.config.model.image_size

    def detect(self, variables: dict[str, Any], images: Any) -> Detections:
        """The detections of images, uint8 [B, S, S, 3], RGB; a pure function."""
        step = partial(
            detect_step,
            model=self.model,
            priors=self.priors,
            variances=self.config.priors.variances,
            config=self.config.eval,
        )
        return step(variables, images)
