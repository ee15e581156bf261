"""Training step, detection and post-processing of torchvision's ssd300_vgg16."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.inputs import CLASSES, images, objects
from benchmarks.runner import Program


def default_device() -> tuple[str, Callable[[Any], None]]:
    """Return "cuda" if available, else "cpu", and a function that waits for it."""
    import torch

    if torch.cuda.is_available():
        return "cuda", lambda _: torch.cuda.synchronize()
    return "cpu", lambda _: None


def _model(device: str = "cpu", precision: str = "float32") -> Any:
    import os

    import torch
    from torchvision.models.detection import ssd300_vgg16

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    model = ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, trainable_backbone_layers=5
    )
    if device == "cpu":
        return model
    return model.to(device, memory_format=torch.channels_last)


def _autocast(device: str, precision: str) -> Any:
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


def _inputs(batch: int, device: str = "cpu") -> list[Any]:
    import torch

    return [(torch.from_numpy(i).permute(2, 0, 1).float() / 255).to(device) for i in images(batch)]


def train(batch: int, device: str = "cpu", precision: str = "float32") -> Program:
    """Set up a training step: forward, loss, backward, SGD with momentum and decay.

    On "cuda" the network is channels last, and the program does not wait for the device.

    Args:
        batch: Images per step.
        device: "cpu" or "cuda".
        precision: "float32", "TF32" (no effect on CPUs) or "bfloat16" (automatic mixed precision).
    """
    import torch

    model = _model(device, precision).train()
    # The initial weights assume a pretrained VGG16; with a usual learning rate the loss overflows.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    inputs = _inputs(batch, device)
    boxes, labels, mask = objects(batch, 64)
    # torchvision's class 0 is the background.
    targets = [
        {
            "boxes": torch.from_numpy(boxes[b][mask[b]] * 300).to(device),
            "labels": torch.from_numpy(labels[b][mask[b]].astype(np.int64) + 1).to(device),
        }
        for b in range(batch)
    ]

    def program() -> None:
        optimizer.zero_grad()
        with _autocast(device, precision):
            loss = sum(model(inputs, targets).values())
        loss.backward()
        optimizer.step()

    return program


def detect(batch: int, device: str = "cpu", precision: str = "float32") -> Program:
    """Set up the detection of a batch: network, decoding and NMS. Arguments as for `train`."""
    import torch

    model, inputs = _model(device, precision).eval(), _inputs(batch, device)

    def program() -> Any:
        with torch.inference_mode(), _autocast(device, precision):
            return model(inputs)

    return program


def post_process(loc: np.ndarray, conf: np.ndarray) -> Program:
    """Set up softmax, decoding and NMS with the thresholds of ssd_jax's default config."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    model = _model().eval()
    model.score_thresh, model.nms_thresh = 0.01, 0.45
    outputs = {"bbox_regression": torch.from_numpy(loc), "cls_logits": torch.from_numpy(conf)}
    sizes = [(300, 300)] * len(loc)
    maps = [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    batch = ImageList(torch.zeros(len(loc), 3, 300, 300), sizes)

    def program() -> Any:
        with torch.inference_mode():
            anchors = model.anchor_generator(batch, maps)
            return model.postprocess_detections(outputs, anchors, sizes)

    return program
