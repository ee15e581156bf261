"""Data of a run: its sources and training batches, and the config's fields that depend on them."""

import dataclasses
from typing import NamedTuple

import jax

from ssd_jax.config import Config, ConfigError
from ssd_jax.data.errors import Finding, raise_errors
from ssd_jax.data.pipeline import TrainBatches, train_batches
from ssd_jax.data.sources import DataSource, find_classes, open_source
from ssd_jax.evaluation.report.metrics_json import metric_names
from ssd_jax.models.ssd import feature_sizes


class TrainingData(NamedTuple):
    """Data of a run."""

    train_source: DataSource
    eval_source: DataSource
    batches: TrainBatches
    """This process's shares of the training batches."""
    notes: list[str]
    """One line for each object that is skipped because its box has no area."""


def resolve_config(config: Config, *, devices: int) -> Config:
    """Fill in the classes from the data, and check the config for this machine.

    Args:
        config: of the run.
        devices: number of devices of all processes.

    Raises:
        ConfigError: the batch is not divisible by the devices, the image is too small, or
            `train.best_metric` is not a metric of the evaluation.
        DataError: the classes cannot be read.
    """
    batch_size, parts = config.train.batch_size, config.train.grad_accumulation_steps
    if batch_size % (devices * parts):
        accumulation = f" times train.grad_accumulation_steps {parts}" if parts > 1 else ""
        raise ConfigError(
            f"train.batch_size {batch_size} must be divisible by the {devices} devices"
            f"{accumulation}; try {batch_size - batch_size % (devices * parts) or devices * parts}"
        )
    feature_sizes(config.model)
    classes = find_classes(config.data, config.model.classes)
    metrics = metric_names(config.eval.metrics, classes)
    if config.train.keep_best and config.train.best_metric not in metrics:
        raise ConfigError(
            f"train.best_metric is {config.train.best_metric!r}; use one of {', '.join(metrics)}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=classes))


def open_data(config: Config) -> TrainingData:
    """Open the sources and the batches of a run with the resolved `config`.

    Raises:
        DataError: a source cannot be read.
        ConfigError: a batch is larger than the training data.
    """
    notes: list[str] = []

    def open_split(name: str, split: str) -> DataSource:
        def on_finding(finding: Finding) -> None:
            raise_errors(finding)
            if finding.kind == "no_area":
                notes.append(f"{name} skips {finding.message}")

        return open_source(config.data, split, config.model.classes, on_finding)

    train_source = open_split("training", config.data.train_split)
    eval_source = open_split("evaluation", config.data.eval_split)
    batches = train_batches(
        train_source,
        config.data,
        image_size=config.model.image_size,
        mean=config.model.image_mean,
        batch_size=config.train.batch_size // jax.process_count(),
        seed=config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    num_images = batches.get_state()["records"]
    if config.train.batch_size > num_images:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size} and the dataset has {num_images} "
            f"images to train on; use {num_images} or less"
        )
    return TrainingData(train_source, eval_source, batches, notes)
