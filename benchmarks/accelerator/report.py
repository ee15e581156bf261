"""JSON and Markdown reports of all parts that have run so far."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator.context import read_results
from benchmarks.accelerator.parts import PARTS
from benchmarks.accelerator.runner import STATUS
from benchmarks.report import plot_lines
from ssd_jax.io import atomic_write

Results = Mapping[str, Any]
Columns = Mapping[str, str]
"""Header of a column -> format string of a row."""

PRODUCTS: Columns = {"TFLOP/s": "{tflop_per_s:,.1f}"}
STEPS: Columns = {
    "largest error of five losses (limit)": "{loss_error:.1e} ({loss_limit:.0e})",
    "error of the gradient (limit)": "{gradient_error:.1e} ({gradient_limit:.0e})",
    "layer with the largest error": "{worst_layer} {worst_layer_error:.1e}",
    "agrees": "{agrees}",
}
TRAINING_STEP: Columns = {
    "images/s": "{images_per_s:,.0f}",
    "ms (range)": "{ms:,.1f} ({ms_min:,.1f} to {ms_max:,.1f})",
    "with batches from the host, images/s": "{images_per_s_from_host:,.0f}",
    "MFU": "{mfu:.0%}",
    "share of matmul throughput": "{matmul_share:.0%}",
    "memory, GB": "{memory_gb:.1f}",
    "compilation or first call, s": "{compile_s:.0f}",
    "predicted roofline, images/s": "{prediction[images_per_s_at_best]:,.0f}",
    "predicted memory, GB": "{prediction[memory_gb]:.1f}",
}
DETECTION: Columns = {
    "latency of a batch, ms (range)": "{ms:.2f} ({ms_min:.2f} to {ms_max:.2f})",
    "images/s": "{images_per_s:,.0f}",
    "network, ms": "{network_ms:.2f}",
    "post-processing, many candidates, ms": "{post_process_untrained_ms:.2f}",
    "few candidates, ms": "{post_process_trained_ms:.2f}",
    "top-k, ms": "{top_k_ms:.2f}",
    "NMS, ms": "{nms_ms:.2f}",
}
KERNELS: Columns = {
    "category": "{category}",
    "ms per step": "{ms:.2f}",
    "calls per step": "{calls:.1f}",
    "share": "{share:.1%}",
}
PIPELINE: Columns = {
    "images/s": "{images_per_s:,.0f}",
    "images/s per core of the machine": "{images_per_s_per_core:.1f}",
}
STATUSES: Columns = {"result": "{status}", "s": "{seconds:,.0f}", "limit, s": "{limit:,.0f}"}


def write_report(out: Path) -> None:
    """Write report.json, report.md and, after a training, training.png to the results' folder."""
    status = read_results(out, STATUS)
    results = {part.name: read_results(out, part.name) for part in PARTS}
    results = {name: recorded for name, recorded in results.items() if recorded}
    text = json.dumps({"status": status, "results": results}, indent=2) + "\n"
    atomic_write(out / "report.json", text.encode())
    if curve := results.get("finetune", {}).get("curve"):
        line = [point["step"] for point in curve], [point["loss"] for point in curve]
        path = out / "training.png"
        plot_lines(path, {"step": {"loss": line}}, ylabel="loss", size=(7, 3))
    atomic_write(out / "report.md", markdown(status, results).encode())


def markdown(status: Results, results: Results) -> str:
    """Format the report: a section for each part, and the errors of failed parts."""
    sections = [
        _machine(results.get("machine", {})),
        _correctness(results.get("correctness", {})),
        _measurements("Training step", TRAINING_STEP, "training_step", results),
        _trace(results.get("trace", {})),
        _measurements("Detection", DETECTION, "detection", results),
        _section(
            "Input pipeline (500x500 JPEGs, full augmentation)",
            table("", results.get("pipeline", {}).items(), PIPELINE),
        ),
        _finetune(results.get("finetune", {})),
        _section(
            "Parts",
            table("part", status.items(), STATUSES),
            *(
                f"{name} failed:\n\n```\n{row['error']}\n```"
                for name, row in status.items()
                if row["status"] == "failed"
            ),
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(corner: str, rows: Iterable[tuple[str, Results]], columns: Columns) -> str:
    """Format rows as a Markdown table; empty without rows.

    Args:
        corner: Header of the first column, which contains the rows' names.
        rows: Name and values of each row.
        columns: Further columns, aligned right; a cell that was not measured is empty.
    """
    cells = [[name, *(_cell(row, form) for form in columns.values())] for name, row in rows]
    lines = [[corner, *columns], ["---"] + ["---:"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if cells else ""


def _cell(row: Results, form: str) -> str:
    try:
        return form.format_map(row)
    except (KeyError, TypeError):  # not recorded, or None
        return ""


def _section(title: str, *paragraphs: str) -> str:
    """Join a heading and the paragraphs that are not empty; empty without paragraphs."""
    filled = [paragraph for paragraph in paragraphs if paragraph]
    return "\n\n".join([f"## {title}", *filled]) if filled else ""


def _measurements(title: str, columns: Columns, part: str, results: Results) -> str:
    """Format the rows of a part and of its peer, and list the failed ones."""
    rows = {**results.get(part, {}), **results.get(f"{part}_torchvision", {})}
    failed = [f"- {name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    measured = {name: row for name, row in rows.items() if "failed" not in row}
    return _section(
        title,
        table("case", measured.items(), columns),
        "Failed:\n\n" + "\n".join(failed) if failed else "",
    )


def _machine(results: Results) -> str:
    if "machine" not in results:
        return ""
    versions = ", ".join(f"{name} {one}" for name, one in results.get("versions", {}).items())
    products = {
        name.removeprefix("product, "): {"tflop_per_s": row["flop_per_s"] / 1e12}
        for name, row in results.items()
        if name.startswith("product")
    }
    copied = results["copy"]["bytes_per_s"] / 1e9 if "copy" in results else None
    return _section(
        "Machine",
        "{devices} x {device} ({platform}), driver {driver}, {cpu_cores} processor cores, Python "
        "{python}; ".format_map(results["machine"])
        + f"{versions}.",
        table("matrix product", products.items(), PRODUCTS),
        f"Copy bandwidth: {copied:,.0f} GB/s (read and written)." if copied else "",
    )


def _correctness(results: Results) -> str:
    steps = {
        name.removeprefix("step, "): {**row, "agrees": "yes" if row["ok"] else "NO"}
        for name, row in results.items()
        if name.startswith("step")
    }
    text = ""
    if row := results.get("detections"):
        text = (
            f"Detections: {row['equal_on_device']:,} of the CPU's {row['detections']:,} also occur "
            "on the device (same class, score within 1e-3, IoU above 0.99): "
            f"{'agrees' if row['ok'] else 'DOES NOT AGREE'}."
        )
    return _section(
        "Agreement with the CPU (float32)", table("type, precision", steps.items(), STEPS), text
    )


def _trace(results: Results) -> str:
    if "device" not in results:
        return ""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in results["categories"].items())
    return _section(
        "Trace of ten steps (SSD300, bfloat16)",
        "A step: {ms:.2f} ms, {busy_ms:.2f} ms busy and {idle_ms:.2f} ms idle ({idle_share:.1%}), "
        "{gaps_above_10us:.0f} gaps above 10 µs, the longest {longest_gap_us:,.0f} µs; "
        "{kernels:,.0f} kernels. ".format_map(results["device"])
        + f"Shares of kernel time: {shares}.",
        table("kernel", ((f"`{row['name'][:70]}`", row) for row in results["longest"]), KERNELS),
    )


def _finetune(results: Results) -> str:
    if "training" not in results:
        return ""
    row, setup = results["training"], results["setup"]
    published = "; ".join(f"{value} ({source})" for source, value in setup["published"].items())
    per_class = ", ".join(
        f"{name.removeprefix('AP/')} {value:.3f}"
        for name, value in row["evaluation"].items()
        if name.startswith("AP/")
    )
    return _section(
        "Training",
        f"{setup['steps']:,} steps of {setup['batch_size']} images in {row['seconds']:.0f} s, "
        f"including compilation and evaluation: mAP **{row['mAP']:.4f}** ({per_class}). "
        f"{row['images_per_s']:,.0f} images/s; the device waited for data {row['data_wait']:.1%} "
        f"of the time. Published for SSD300-VGG16: {published}.",
        "![Loss](training.png)" if results.get("curve") else "",
    )
