"""A trained network for export, and its detections as a function of images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.config import Config
from ssd_jax.inference.detect import detect_step
from ssd_jax.kernels.conv2d import use_cpu_conv
from ssd_jax.models.ssd import SSD, make_model, model_priors
from ssd_jax.ops.nms import Detections
from ssd_jax.weights.trained import find_trained, read_trained_config, restore_trained


@dataclass(frozen=True)
class Network:
    """Trained network as it is exported: float32, with the compiler's 3x3 convolutions."""

    checkpoint: Path
    config: Config
    model: SSD
    variables: dict[str, Any]
    priors: np.ndarray
    """float32 [P, 4], cxcywh, fractions of the image."""

    @classmethod
    def from_checkpoint(
        cls, source: str | Path, score_threshold: float, *, best: bool = False
    ) -> "Network":
        """Read a trained network, see `ssd_jax.weights.trained.find_trained`.

        Raises:
            UserError: it cannot be read.
        """
        checkpoint = find_trained(source, best=best)
        config = read_trained_config(checkpoint)
        _, variables = restore_trained(checkpoint, config)
        config = replace(
            config,
            # Other types are for training on accelerators.
            model=replace(config.model, dtype="float32"),
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
        """Side of the input (pixels)."""
        return self.config.model.image_size

    def detect(self, variables: dict[str, Any], images: Any) -> Detections:
        """Detect objects in images, uint8 [B, S, S, 3], RGB; a pure function."""
        # Winograd's transforms would be part of the exported program.
        with use_cpu_conv("direct"):
            return detect_step(
                variables,
                images,
                model=self.model,
                priors=self.priors,
                variances=self.config.priors.variances,
                config=self.config.eval,
            )
