"""One JSON and one Markdown report of all parts that have run so far."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.context import read_results
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.runner import STATUS
from ssd_jax.io import atomic_write

Results = Mapping[str, Any]


def write_report(out: Path) -> None:
    """Write report.json, report.md and, after a training, training.png to the results' folder."""
    status = read_results(out, STATUS)
    results = {part.name: read_results(out, part.name) for part in PARTS}
    results = {name: found for name, found in results.items() if found}
    text = json.dumps({"status": status, "results": results}, indent=2) + "\n"
    atomic_write(out / "report.json", text.encode())
    curve = results.get("finetune", {}).get("curve")
    if curve:
        plot_training(curve, out / "training.png")
    atomic_write(out / "report.md", markdown(status, results).encode())


def markdown(status: Results, results: Results) -> str:
    """The report's text: a section for each part, and the parts that failed."""
    sections = [
        _machine(results.get("machine", {})),
        _correctness(results.get("correctness", {})),
        _training_step(results),
        _trace(results.get("trace", {})),
        _detection(results),
        _pipeline(results.get("pipeline", {})),
        _finetune(results.get("finetune", {})),
        _status(status),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: Any, form: str = ",.0f", scale: float = 1.0) -> str:
    """A formatted number, or nothing where it was not measured."""
    return "" if value is None else format(value * scale, form)


def _machine(found: Results) -> str:
    if "machine" not in found:
        return ""
    of = found["machine"]
    rows = [
        [name.removeprefix("product, "), number(row["flop_per_s"], ",.1f", 1e-12)]
        for name, row in found.items()
        if name.startswith("product")
    ]
    text = (
        f"## Machine\n\n{of['devices']} x {of['device']} ({of['platform']}), driver "
        f"{of['driver']}, {of['cpu_cores']} processor cores, Python {of['python']}; "
        + ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
        + "."
    )
    if rows:
        text += "\n\n" + table(["matrix product", "TFLOP/s"], rows)
    if "copy" in found:
        text += (
            f"\n\nA copy moves {found['copy']['bytes_per_s'] / 1e9:,.0f} GB/s (read and written)."
        )
    return text


def _correctness(found: Results) -> str:
    rows = [
        [
            name.removeprefix("step, "),
            f"{row['loss_error']:.1e} ({row['loss_limit']:.0e})",
            f"{row['gradient_error']:.1e} ({row['gradient_limit']:.0e})",
            f"{row['worst_layer']} {row['worst_layer_error']:.1e}",
            "yes" if row["ok"] else "NO",
        ]
        for name, row in found.items()
        if name.startswith("step")
    ]
    if not rows:
        return ""
    text = "## Agreement with the CPU (float32)\n\n" + table(
        [
            "type, precision",
            "largest error of five losses (limit)",
            "error of the gradient (limit)",
            "worst layer",
            "agrees",
        ],
        rows,
    )
    if of := found.get("detections"):
        text += (
            f"\n\nDetections: {of['found_on_device']:,} of the CPU's {of['detections']:,} are the "
            f"device's as well (same class, score within 1e-3, IoU above 0.99): "
            f"{'agrees' if of['ok'] else 'DOES NOT AGREE'}."
        )
    return text


def _training_step(results: Results) -> str:
    rows, failed = [], []
    for part in ("training_step", "training_step_torchvision"):
        for name, row in results.get(part, {}).items():
            if "failed" in row:
                failed.append(f"- {name}: {row['failed']}")
                continue
            prediction = row.get("prediction", {})
            rows.append(
                [
                    name,
                    number(row["images_per_s"]),
                    f"{row['ms']:,.1f} ({row['ms_min']:,.1f} to {row['ms_max']:,.1f})",
                    number(row.get("images_per_s_from_host")),
                    number(row.get("mfu"), ".0%"),
                    number(row.get("of_measured_peak"), ".0%"),
                    number(row.get("program_gb", row.get("peak_gb")), ".1f"),
                    number(row.get("compile_s", row.get("first_call_s")), ".0f"),
                    number(prediction.get("images_per_s_at_best")),
                    number(prediction.get("memory_gb"), ".1f"),
                ]
            )
    if not rows and not failed:
        return ""
    header = [
        *("training step", "images/s", "ms (range)", "images/s, batches from the host"),
        *("MFU", "of the measured product", "memory, GB", "compile or first call, s"),
        *("predicted images/s at best", "predicted GB"),
    ]
    text = "## Training step"
    text += "\n\n" + table(header, rows) if rows else ""
    return text + ("\n\nFailed:\n\n" + "\n".join(failed) if failed else "")


def _trace(found: Results) -> str:
    if "device" not in found:
        return ""
    of = found["device"]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found["categories"].items())
    rows = [
        [
            f"`{row['name'][:70]}`",
            row["category"],
            f"{row['ms']:.2f}",
            f"{row['calls']:.1f}",
            f"{row['share']:.1%}",
        ]
        for row in found["longest"]
    ]
    return (
        "## Trace of ten steps (SSD300, bfloat16)\n\n"
        f"A step: {of['ms']:.2f} ms, of which {of['busy_ms']:.2f} ms busy and {of['idle_ms']:.2f} "
        f"ms idle ({of['idle_share']:.1%}), {of['gaps_above_10us']:.0f} gaps above 10 µs, the "
        f"longest {of['longest_gap_us']:,.0f} µs; {of['kernels']:,.0f} kernels. Shares of kernel "
        f"time: {shares}.\n\n"
        + table(["kernel", "kind", "ms a step", "calls a step", "share"], rows)
    )


def _detection(results: Results) -> str:
    rows, failed = [], []
    for part in ("detection", "detection_torchvision"):
        for name, row in results.get(part, {}).items():
            if "failed" in row:
                failed.append(f"- {name}: {row['failed']}")
                continue
            rows.append(
                [
                    name,
                    f"{row['latency_ms']:.2f} ({row['latency_ms_min']:.2f} to "
                    f"{row['latency_ms_max']:.2f})",
                    number(row["images_per_s"]),
                    *(
                        number(row.get(key), ".2f")
                        for key in (
                            *("network_ms", "post_process_untrained_ms"),
                            *("post_process_trained_ms", "top_k_ms", "suppression_ms"),
                        )
                    ),
                ]
            )
    if not rows and not failed:
        return ""
    header = [
        *("detection", "latency of a batch, ms (range)", "images/s", "network, ms"),
        *("post-processing, many candidates, ms", "few, ms", "top-k, ms", "suppression, ms"),
    ]
    text = "## Detection"
    text += "\n\n" + table(header, rows) if rows else ""
    return text + ("\n\nFailed:\n\n" + "\n".join(failed) if failed else "")


def _pipeline(found: Results) -> str:
    if not found:
        return ""
    rows = [
        [name, number(row["images_per_s"]), number(row["images_per_s_and_core"], ".1f")]
        for name, row in found.items()
    ]
    return "## Input pipeline (500x500 JPEGs, full augmentation)\n\n" + table(
        ["", "images/s", "images/s and core of the machine"], rows
    )


def _finetune(found: Results) -> str:
    if "training" not in found:
        return ""
    of, setup = found["training"], found["setup"]
    published = "; ".join(f"{value} ({source})" for source, value in setup["published"].items())
    per_class = ", ".join(
        f"{name.removeprefix('AP/')} {value:.3f}"
        for name, value in of["evaluation"].items()
        if name.startswith("AP/")
    )
    text = (
        f"## Training\n\n{setup['steps']:,} steps of {setup['batch_size']} images in "
        f"{of['seconds']:.0f} s with compiling and evaluation: mAP **{of['mAP']:.4f}** ({per_class}"
        f"). {of['images_per_s']:,.0f} images/s; the device waited for data "
        f"{of['data_wait']:.1%} of the time. Published for SSD300-VGG16: {published}."
    )
    return text + ("\n\n![Loss](training.png)" if found.get("curve") else "")


def _status(status: Results) -> str:
    if not status:
        return ""
    rows = [
        [name, of["status"], number(of.get("seconds")), number(of.get("limit"))]
        for name, of in status.items()
    ]
    text = "## Parts\n\n" + table(["part", "result", "s", "limit, s"], rows)
    for name, of in status.items():
        if of["status"] == "failed":
            text += f"\n\n{name} failed:\n\n```\n{of['error']}\n```"
    return text


def plot_training(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the loss against the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([x["step"] for x in curve], [x["loss"] for x in curve], color="#2f6fb2")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(0, None)
    axes.grid(color="#e3e5e8")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
