"""The network, layer by layer, for export formats with layers of their own."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from ssd_jax.export.network import Network
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.models.ssd import HEAD_GEOMETRY
from ssd_jax.models.vgg import VGG16_LAYERS, ConvLayer, extra_layers

T = TypeVar("T")
_BN_EPSILON = 1e-5  # Flax's default


class GraphBuilder(Protocol[T]):
    """Operations of an export format; T is its tensor."""

    def images(self, mean: Sequence[float]) -> T:
        """Add the input, uint8 [B, S, S, 3], as floats without `mean`."""

    def conv(self, x: T, kernel: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> T:
        """Add a convolution with a kernel [k, k, I, O] and a bias [O]."""

    def relu(self, x: T) -> T:
        """Add a ReLU."""

    def pool(self, x: T, size: int, *, ceil: bool) -> T:
        """Add a max pool; see `ssd_jax.models.vgg.PoolLayer`."""

    def l2_norm(self, x: T, scale: np.ndarray) -> T:
        """Add an L2 normalization with a scale [C]; see `ssd_jax.models.layers.L2Norm`."""

    def affine(self, x: T, scale: np.ndarray, bias: np.ndarray) -> T:
        """Add a scale [C] and an offset [C] per channel."""

    def rows(self, x: T, values: int) -> T:
        """Reshape a head's output to [B, p, values], by rows, columns and boxes."""

    def concat(self, parts: Sequence[T]) -> T:
        """Concatenate the rows of all heads to [B, P, values]."""


def build_network(graph: GraphBuilder[T], network: Network) -> tuple[T, T]:
    """Build the network; return box offsets [B, P, 4] and logits [B, P, C].

    Batch norm is folded into the convolution before it.
    """
    config, params = network.config.model, network.variables["params"]
    stats = network.variables.get("batch_stats") or {}

    def conv_block(x: T, part: str, layer: ConvLayer) -> T:
        block = params[part][layer.name]
        kernel, bias = (np.asarray(block["conv"][key]) for key in ("kernel", "bias"))
        if config.batch_norm:
            kernel, bias = _fold(kernel, bias, block["bn"], stats[part][layer.name]["bn"])
        return graph.relu(graph.conv(x, kernel, bias, layer.geometry))

    x = graph.images(config.image_mean)
    features = {}
    for part, layers in (("base", VGG16_LAYERS), ("extras", extra_layers(config))):
        for layer in layers:
            if isinstance(layer, ConvLayer):
                x = features[layer.name] = conv_block(x, part, layer)
            else:
                x = graph.pool(x, layer.kernel_size, ceil=layer.ceil)

    loc: list[T] = []
    conf: list[T] = []
    for name in config.feature_layers:
        x = features[name]
        if f"l2norm_{name}" in params:
            x = graph.l2_norm(x, np.asarray(params[f"l2norm_{name}"]["scale"]))
        elif f"affine_{name}" in params:
            affine = params[f"affine_{name}"]
            x = graph.affine(x, np.asarray(affine["scale"]), np.asarray(affine["bias"]))
        for key, values, rows in (("loc", 4, loc), ("conf", config.num_classes, conf)):
            head = params[f"head_{name}"][key]
            kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
            rows.append(graph.rows(graph.conv(x, kernel, bias, HEAD_GEOMETRY), values))
    return graph.concat(loc), graph.concat(conf)


def _fold(
    kernel: np.ndarray, bias: np.ndarray, bn: Any, stats: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Fold a batch norm into the convolution before it."""
    factor = np.asarray(bn["scale"]) / np.sqrt(np.asarray(stats["var"]) + _BN_EPSILON)
    return kernel * factor, (bias - np.asarray(stats["mean"])) * factor + np.asarray(bn["bias"])
