"""The ONNX form: the network, decoding and suppression in ONNX's operators, of opset 17."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.export.layers import build_network
from ssd_jax.export.network import Network
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.models.layers import L2Norm

_OPSET = 17
# The format's version: what onnxruntime has read since 2024.
_IR_VERSION = 10


class _Graph:
    """Nodes and constants as they are added; tensors go by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """The name of the output of a new node, or the names of several."""
        from onnx import helper

        names = [f"{operator}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """The name of a constant."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """The name of a constant of whole numbers [n]."""
        return self.constant(values, np.int64)


def write(network: Network, path: Path, batch: int | None) -> None:
    """Write the detection of `batch` images (None: of any number) with all weights inside."""
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    loc, conf = build_network(_Layers(graph), network)
    outputs = _detections(graph, network, loc, conf)
    rows: int | str = "batch" if batch is None else batch
    size, kept = network.size, _kept(network)
    kinds = {
        "boxes": (TensorProto.FLOAT, [rows, kept, 4]),
        "scores": (TensorProto.FLOAT, [rows, kept]),
        "labels": (TensorProto.INT32, [rows, kept]),
        "count": (TensorProto.INT32, [rows]),
    }
    for name, made in zip(kinds, outputs, strict=True):
        graph.nodes.append(helper.make_node("Identity", [made], [name]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "ssd",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, [rows, size, size, 3])],
            [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="ssd_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


class _Layers:
    """The layers as nodes of a graph; maps are [B, C, H, W] there."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def images(self, mean: Sequence[float]) -> str:
        """The input as floats, without its mean."""
        add, constant = self._graph.add, self._graph.constant
        x = add("Sub", add("Cast", "images", to=1), constant(mean))
        return add("Transpose", x, perm=[0, 3, 1, 2])

    def conv(self, x: str, kernel: np.ndarray, bias: np.ndarray, geometry: ConvGeometry) -> str:
        """A convolution and its bias."""
        return self._graph.add(
            "Conv",
            x,
            self._graph.constant(kernel.transpose(3, 2, 0, 1)),
            self._graph.constant(bias),
            kernel_shape=list(kernel.shape[:2]),
            strides=[geometry.stride] * 2,
            pads=[geometry.padding] * 4,
            dilations=[geometry.dilation] * 2,
        )

    def relu(self, x: str) -> str:
        """What is above 0."""
        return self._graph.add("Relu", x)

    def pool(self, x: str, size: int, *, ceil: bool) -> str:
        """The maximum of 2x2 blocks, or of each cell's 3x3 neighbourhood."""
        geometry = {"strides": [2, 2], "ceil_mode": int(ceil)} if size == 2 else {"pads": [1] * 4}
        return self._graph.add("MaxPool", x, kernel_shape=[size, size], **geometry)

    def l2_norm(self, x: str, scale: np.ndarray) -> str:
        """Channels at each cell to length 1, then times their factors."""
        add, constant = self._graph.add, self._graph.constant
        squares = add("ReduceSum", add("Mul", x, x), self._graph.ints(1), keepdims=1)
        norm = add("Sqrt", add("Add", squares, constant(L2Norm.epsilon)))
        return add("Mul", add("Div", x, norm), constant(scale[:, None, None]))

    def rows(self, x: str, values: int) -> str:
        """A head's output as [B, p, values], by rows, columns and boxes."""
        x = self._graph.add("Transpose", x, perm=[0, 2, 3, 1])
        return self._graph.add("Reshape", x, self._graph.ints(0, -1, values))

    def concat(self, parts: Sequence[str]) -> str:
        """Rows of all heads."""
        return self._graph.add("Concat", *parts, axis=1)


def _detections(graph: _Graph, network: Network, loc: str, conf: str) -> Sequence[str]:
    """Boxes, scores, labels and count, by the rules of ops/nms.py."""
    config = network.config.eval
    priors, classes = len(network.priors), network.config.model.num_classes
    boxes = _decode(graph, network, loc)
    if config.clip_boxes:
        boxes = graph.add("Clip", boxes, graph.constant(0.0), graph.constant(1.0))
    scores = graph.add("Transpose", graph.add("Softmax", conf, axis=-1), perm=[0, 2, 1])
    # Without background: [B, C - 1, P].
    scores = graph.add("Slice", scores, graph.ints(1), graph.ints(classes), graph.ints(1))

    topk_candidates = min(config.topk_candidates, priors)
    if topk_candidates < priors:
        best, _ = graph.add("TopK", scores, graph.ints(topk_candidates), outputs=2, axis=2)
        last = graph.add(
            "Slice",
            best,
            graph.ints(topk_candidates - 1),
            graph.ints(topk_candidates),
            graph.ints(2),
        )
        is_candidate = graph.add("GreaterOrEqual", scores, last)
        scores = graph.add("Where", is_candidate, scores, graph.constant(0.0))
    kept = graph.add(
        "NonMaxSuppression",
        boxes,
        scores,
        graph.ints(topk_candidates),
        graph.constant([config.nms_iou_threshold]),
        graph.constant([config.score_threshold]),
    )  # [n, 3]: image, class, prior
    left = graph.add(
        "ScatterND",
        graph.add("Mul", scores, graph.constant(0.0)),
        kept,
        graph.add("GatherND", scores, kept),
    )
    # Of equal scores the lower class comes first, then the lower prior.
    left = graph.add("Reshape", left, graph.ints(0, -1))
    top, place = graph.add("TopK", left, graph.ints(_kept(network)), outputs=2, axis=1)
    there = graph.add("Greater", top, graph.constant(0.0))
    divisor = graph.ints(priors)
    label = graph.add("Add", graph.add("Div", place, divisor), graph.ints(1))
    prior = graph.add("Unsqueeze", graph.add("Mod", place, divisor), graph.ints(2))
    chosen = graph.add("GatherND", boxes, prior, batch_dims=1)
    mask = graph.add("Cast", there, to=1)
    return (
        graph.add("Mul", chosen, graph.add("Unsqueeze", mask, graph.ints(2))),
        top,
        graph.add("Cast", graph.add("Where", there, label, graph.ints(0)), to=6),
        graph.add("Cast", graph.add("ReduceSum", mask, graph.ints(1), keepdims=0), to=6),
    )


def _decode(graph: _Graph, network: Network, loc: str) -> str:
    """Boxes [B, P, 4], xyxy as fractions; ops/boxes.py's decode_boxes."""
    centre, size = network.priors[:, :2], network.priors[:, 2:]
    by_centre, by_size = network.config.priors.variances
    move, growth = graph.add("Split", loc, graph.ints(2, 2), outputs=2, axis=2)
    growth = graph.add("Mul", growth, graph.constant(by_size))
    if limit := network.config.eval.max_box_scale:
        growth = graph.add("Min", growth, graph.constant(np.log(limit)))
    move = graph.add("Mul", move, graph.constant(size * by_centre))
    middle = graph.add("Add", move, graph.constant(centre))
    half = graph.add("Mul", graph.add("Exp", growth), graph.constant(size / 2))
    low, high = graph.add("Sub", middle, half), graph.add("Add", middle, half)
    return graph.add("Concat", low, high, axis=2)


def _kept(network: Network) -> int:
    """Rows of an image's outputs."""
    classes = network.config.model.num_classes - 1
    return min(network.config.eval.detections_per_image, classes * len(network.priors))
