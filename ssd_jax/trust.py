"""Fields of a checkpoint's config that are trusted, and those that this machine decides.

A checkpoint may come from a stranger. What its config says of the network, the data and the
metrics is used; where it would say what this machine loads, keeps or spends, this machine's own
value is. Every field is in one of the two lists: a new one fails a test until it is.
"""

import dataclasses

from ssd_jax.config import Config

LOCAL_FIELDS = {
    # Files to read that a checkpoint's own variables and classes have replaced.
    "model": ("pretrained", "init_from"),
    "data": ("class_file", "workers"),
    # Compiled programs are run when they are loaded.
    "train": ("compile_cache",),
}
"""Fields that a checkpoint's config does not decide: they get their defaults."""

TRUSTED_FIELDS = {
    "model": (
        *("classes", "image_size", "width", "sources", "extras", "batch_norm", "dtype", "mean"),
        *("pretrained_channels", "pretrained_scale", "trainable_from", "cpu_conv"),
    ),
    "priors": ("sizes", "steps", "aspect_ratios", "variances", "clip", "clip_size"),
    # evaluate.py only reads there: annotations and images.
    "data": (
        *("format", "root", "train_split", "eval_split", "tfds"),
        *("max_objects", "use_difficult", "use_empty"),
        *("augment", "expand_ratio", "crop_scale", "crop_aspect", "vertical_flip"),
    ),
    # A record of the training; nothing that reads a checkpoint uses them.
    "optim": (
        *("learning_rate", "schedule", "milestones", "gamma", "warmup_steps", "momentum"),
        *("weight_decay", "caffe_biases", "clip_norm", "rate_batch_size", "ema_decay"),
    ),
    "train": (
        *("steps", "batch_size", "accumulate", "seed", "matching", "match_iou", "negative_ratio"),
        *("log_every", "eval_every", "checkpoint_every", "keep", "keep_best", "best_metric"),
        *("keep_every", "on_nonfinite", "profile_steps"),
    ),
    "eval": (
        *("batch_size", "score_threshold", "nms_iou", "candidates", "max_detections"),
        *("clip_boxes", "max_growth", "metrics", "iou_threshold", "pixels"),
        *("pictures", "report", "report_score", "report_images"),
    ),
}
"""Fields that a checkpoint's config decides."""


def with_local_fields(config: Config) -> Config:
    """Return the config with this machine's values of LOCAL_FIELDS."""
    local = Config()
    for section, names in LOCAL_FIELDS.items():
        values = {name: getattr(getattr(local, section), name) for name in names}
        changed = dataclasses.replace(getattr(config, section), **values)
        config = dataclasses.replace(config, **{section: changed})
    return config


def with_local_cache(config: Config) -> Config:
    """Return the config of a run to go on with: its programs are kept where this machine does."""
    cache = Config().train.compile_cache
    return dataclasses.replace(config, train=dataclasses.replace(config.train, compile_cache=cache))
