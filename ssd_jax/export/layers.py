"""The network layer by layer, for forms that have layers of their own."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from ssd_jax.config import BASE_LAYERS
from ssd_jax.export.network import Network
from ssd_jax.kernels.conv2d import ConvGeometry
from ssd_jax.models.vgg import base_window

T = TypeVar("T")
_BN_EPSILON = 1e-5  # flax's


class GraphBuilder(Protocol[T]):
    """What a form can compute; T is its tensor."""

    def images(self, mean: Sequence[float]) -> T:
        """The input, uint8 [B, S, S, 3], as floats, less `mean`."""

    def conv(self, x: T, kernel: np.ndarray, bias: np.ndarray, window: ConvGeometry) -> T:
        """The convolution of x with a kernel [k, k, I, O], plus the bias [O]."""

    def relu(self, x: T) -> T:
        """What is above 0."""

    def pool(self, x: T, size: int, *, ceil: bool) -> T:
        """The maximum of 2x2 blocks, an odd last row kept with `ceil`, or of 3x3 neighbourhoods."""

    def l2_norm(self, x: T, scale: np.ndarray) -> T:
        """The channels of each cell to length 1, then times `scale` [C]; see `L2Norm`."""

    def rows(self, x: T, values: int) -> T:
        """A head's map as [B, p, values], by rows, columns and boxes."""

    def concat(self, parts: Sequence[T]) -> T:
        """[B, P, values] from the rows of each head."""


def walk(layers: GraphBuilder[T], network: Network) -> tuple[T, T]:
    """Box offsets [B, P, 4] and logits [B, P, C], by the layers of a form.

    Batch norm is folded into the convolution before it.
    """
    config, params = network.config.model, network.variables["params"]
    stats = network.variables.get("batch_stats") or {}

    def block(x: T, part: str, name: str, window: ConvGeometry) -> T:
        layer = params[part][name]
        kernel, bias = (np.asarray(layer["conv"][key]) for key in ("kernel", "bias"))
        if config.batch_norm:
            kernel, bias = _fold(kernel, bias, layer["bn"], stats[part][name]["bn"])
        return layers.relu(layers.conv(x, kernel, bias, window))

    x = layers.images(config.image_mean)
    maps = {}
    stage = "conv1"
    for name in BASE_LAYERS:
        if (next_stage := name.split("_")[0]) != stage:
            if stage == "conv5":
                x = layers.pool(x, 3, ceil=False)
            elif stage != "conv6":
                x = layers.pool(x, 2, ceil=stage == "conv3")
            stage = next_stage
        x = maps[name] = block(x, "base", name, base_window(name))
    for k, (_, _, _, stride, padding) in enumerate(config.extras):
        if f"conv{8 + k}_1" not in params.get("extras", {}):
            break  # layers after the last source are not there
        x = block(x, "extras", f"conv{8 + k}_1", ConvGeometry())
        x = maps[f"conv{8 + k}_2"] = block(
            x, "extras", f"conv{8 + k}_2", ConvGeometry(stride, padding)
        )

    loc: list[T] = []
    conf: list[T] = []
    for name in config.feature_layers:
        x = maps[name]
        if f"l2norm_{name}" in params:
            x = layers.l2_norm(x, np.asarray(params[f"l2norm_{name}"]["scale"]))
        for key, values, rows in (("loc", 4, loc), ("conf", config.num_classes, conf)):
            head = params[f"head_{name}"][key]
            kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
            rows.append(layers.rows(layers.conv(x, kernel, bias, ConvGeometry(1, 1)), values))
    return layers.concat(loc), layers.concat(conf)


def _fold(
    kernel: np.ndarray, bias: np.ndarray, bn: Any, stats: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A convolution that does what it and the batch norm after it did."""
    factor = np.asarray(bn["scale"]) / np.sqrt(np.asarray(stats["var"]) + _BN_EPSILON)
    return kernel * factor, (bias - np.asarray(stats["mean"])) * factor + np.asarray(bn["bias"])
