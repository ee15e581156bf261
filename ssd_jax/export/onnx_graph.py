"""ONNX format: network, decoding and NMS as operators of opset 17."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_jax.export.layers import build_network
from ssd_jax.export.network import Network
from ssd_jax.kernels.geometry import ConvGeometry
from ssd_jax.models.layers import L2Norm

_OPSET = 17
# Version of the file format, read by onnxruntime since 2024.
_IR_VERSION = 10


class _Graph:
    """Nodes and constants of a graph; tensors are referred to by name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or a list of names."""
        from onnx import helper

        names = [f"{operator}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """Add a constant of integers [n]; return its name."""
        return self.constant(values, np.int64)


def write(network: Network, path: Path, batch: int | None) -> None:
    """Write a model that detects in `batch` images (None: any number), with all weights."""
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    loc, conf = build_network(_Layers(graph), network)
    outputs = _detections(graph, network, loc, conf)
    rows: int | str = "batch" if batch is None else batch
    size, kept = network.size, _num_outputs(network)
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
    """GraphBuilder that adds nodes to a graph; feature maps are [B, C, H, W]."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def images(self, mean: Sequence[float]) -> str:
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
        return self._graph.add("Relu", x)

    def pool(self, x: str, size: int, *, ceil: bool) -> str:
        geometry = {"strides": [2, 2], "ceil_mode": int(ceil)} if size == 2 else {"pads": [1] * 4}
        return self._graph.add("MaxPool", x, kernel_shape=[size, size], **geometry)

    def l2_norm(self, x: str, scale: np.ndarray) -> str:
        add, constant = self._graph.add, self._graph.constant
        squares = add("ReduceSum", add("Mul", x, x), self._graph.ints(1), keepdims=1)
        norm = add("Sqrt", add("Add", squares, constant(L2Norm.epsilon)))
        return add("Mul", add("Div", x, norm), constant(scale[:, None, None]))

    def affine(self, x: str, scale: np.ndarray, bias: np.ndarray) -> str:
        add, constant = self._graph.add, self._graph.constant
        x = add("Mul", x, constant(scale[:, None, None]))
        return add("Add", x, constant(bias[:, None, None]))

    def rows(self, x: str, values: int) -> str:
        x = self._graph.add("Transpose", x, perm=[0, 2, 3, 1])
        return self._graph.add("Reshape", x, self._graph.ints(0, -1, values))

    def concat(self, parts: Sequence[str]) -> str:
        return self._graph.add("Concat", *parts, axis=1)


def _detections(graph: _Graph, network: Network, loc: str, conf: str) -> Sequence[str]:
    """Add decoding and NMS, by the rules of ops/nms.py; return boxes, scores, labels and count."""
    add, constant, ints = graph.add, graph.constant, graph.ints
    config = network.config.eval
    priors, classes = len(network.priors), network.config.model.num_classes
    boxes = _decode(graph, network, loc)
    if config.clip_boxes:
        boxes = add("Clip", boxes, constant(0.0), constant(1.0))
    scores = add("Transpose", add("Softmax", conf, axis=-1), perm=[0, 2, 1])
    # Without background: [B, C - 1, P].
    scores = add("Slice", scores, ints(1), ints(classes), ints(1))

    k = min(config.topk_candidates, priors)
    if k < priors:
        best, _ = add("TopK", scores, ints(k), outputs=2, axis=2)
        last = add("Slice", best, ints(k - 1), ints(k), ints(2))
        is_candidate = add("GreaterOrEqual", scores, last)
        scores = add("Where", is_candidate, scores, constant(0.0))
    kept = add(
        "NonMaxSuppression",
        boxes,
        scores,
        ints(k),
        constant([config.nms_iou_threshold]),
        constant([config.score_threshold]),
    )  # [n, 3]: image, class, prior
    zeros = add("Mul", scores, constant(0.0))
    scores = add("ScatterND", zeros, kept, add("GatherND", scores, kept))
    # Of equal scores the lower class comes first, then the lower prior.
    scores = add("Reshape", scores, ints(0, -1))
    top, index = add("TopK", scores, ints(_num_outputs(network)), outputs=2, axis=1)
    valid = add("Greater", top, constant(0.0))
    label = add("Add", add("Div", index, ints(priors)), ints(1))
    prior = add("Unsqueeze", add("Mod", index, ints(priors)), ints(2))
    top_boxes = add("GatherND", boxes, prior, batch_dims=1)
    mask = add("Cast", valid, to=1)
    return (
        add("Mul", top_boxes, add("Unsqueeze", mask, ints(2))),
        top,
        add("Cast", add("Where", valid, label, ints(0)), to=6),
        add("Cast", add("ReduceSum", mask, ints(1), keepdims=0), to=6),
    )


def _decode(graph: _Graph, network: Network, loc: str) -> str:
    """Add `decode_boxes` of ops/boxes.py; return boxes [B, P, 4], xyxy as fractions."""
    add, constant = graph.add, graph.constant
    prior_center, prior_size = network.priors[:, :2], network.priors[:, 2:]
    center_variance, size_variance = network.config.priors.variances
    offset, log_scale = add("Split", loc, graph.ints(2, 2), outputs=2, axis=2)
    log_scale = add("Mul", log_scale, constant(size_variance))
    if limit := network.config.eval.max_box_scale:
        log_scale = add("Min", log_scale, constant(np.log(limit)))
    offset = add("Mul", offset, constant(prior_size * center_variance))
    center = add("Add", offset, constant(prior_center))
    half = add("Mul", add("Exp", log_scale), constant(prior_size / 2))
    return add("Concat", add("Sub", center, half), add("Add", center, half), axis=2)


def _num_outputs(network: Network) -> int:
    """Return the number of rows in an image's outputs."""
    classes = network.config.model.num_classes - 1
    return min(network.config.eval.detections_per_image, classes * len(network.priors))
