"""Model card of a detector for the Hugging Face Hub."""

import json
from collections.abc import Mapping
from typing import Any

from ssd_jax.config import Config, shorten
from ssd_jax.weights import hub

_METRICS = {
    "voc07/mAP": "mAP, 11-point (VOC 2007)",
    "voc/mAP": "mAP, area (VOC)",
    "coco/AP": "AP, IoU 0.50 to 0.95 (COCO)",
    "coco/AP50": "AP, IoU 0.50 (COCO)",
}


def make_card(
    repo: str,
    config: Config,
    *,
    step: int | None,
    metrics: Mapping[str, Any] | None,
    license_id: str,
) -> str:
    """Write a model card in Markdown: data, training, metrics, licence and how to use it.

    Args:
        repo: USER/REPO.
        config: that of the detector.
        step: number of the training's steps; 0 or None: not trained here.
        metrics: content of the metrics.json of its evaluation; None: not evaluated.
        license_id: SPDX or Hub identifier of the licence; empty: not stated.
    """
    name, data = repo.split("/")[-1], config.data
    scores = {
        label: value
        for key, label in _METRICS.items()
        if isinstance(value := (metrics or {}).get(key), float)
    }
    head = ["---", "library_name: ssd_jax", "pipeline_tag: object-detection"]
    head += [f"license: {json.dumps(license_id)}"] if license_id else []
    head += ["tags:", "- ssd", "- jax", "- flax", "- object-detection"]
    if scores:
        dataset = json.dumps(f"{data.format} {data.eval_split}")
        head += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        head += ["  - task:", "      type: object-detection", "    dataset:"]
        head += [f"      name: {dataset}", f"      type: {json.dumps(data.format)}", "    metrics:"]
        for label, value in scores.items():
            head += [f"    - name: {json.dumps(label)}", "      type: mean_average_precision"]
            head += [f"      value: {value:.4f}"]
    size, classes = config.model.image_size, config.model.classes
    trained = (
        f"{step:,} steps of {config.train.batch_size} images of {data.train_split} ({data.format})."
        if step
        else "Imported from other weights."
    )
    lines = [
        *(*head, "---", "", f"# {name}", ""),
        f"SSD detector for {len(classes)} classes ({shorten(classes, 20)}), input {size}x{size} "
        "pixels, in JAX and Flax.",
        "",
        "## Use",
        "",
        *("```", "pip install 'ssd_jax[hub]'"),
        *(f"ssd-jax predict photo.jpg --checkpoint hf://{repo}", "```", ""),
        *("```python", "import ssd_jax", ""),
        f'detector = ssd_jax.Detector.from_pretrained("hf://{repo}")',
        *('detections = detector("photo.jpg")', "```", ""),
        "## Training",
        "",
        f"{trained} The complete config is in the metadata of {hub.FILE_NAME}.",
        "",
        "## Evaluation",
        "",
    ]
    if scores:
        lines += [f"On {data.eval_split} ({data.format}):", ""]
        lines += ["| metric | value |", "| --- | --- |"]
        lines += [f"| {label} | {value:.4f} |" for label, value in scores.items()]
    else:
        lines += ["Not evaluated."]
    lines += ["", "## Licence", "", license_id or "Not stated."]
    return "\n".join(lines) + "\n"
