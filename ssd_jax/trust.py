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
    "data": ("class_file", "num_workers"),
    # Compiled programs are run when they are loaded.
    "runtime": ("compilation_cache_dir",),
}
"""Fields that a checkpoint's config does not decide: they get their defaults."""

TRUSTED_FIELDS = {
    "model": (
        *(
            "classes",
            "image_size",
            "width_multiplier",
            "feature_layers",
            "extras",
            "batch_norm",
            "dtype",
            "image_mean",
        ),
        *("pretrained_channels", "pretrained_scale", "freeze_before"),
    ),
    "priors": ("sizes", "steps", "aspect_ratios", "variances", "clip", "clip_wh"),
    # evaluate.py only reads there: annotations and images.
    "data": (
        *("format", "root", "train_split", "eval_split", "tfds"),
        *("max_objects", "use_difficult", "keep_empty"),
        *("augment", "expand_ratio", "min_crop_scale", "max_crop_aspect_ratio", "vertical_flip"),
    ),
    # A record of the training; nothing that reads a checkpoint uses them.
    "optim": (
        *("learning_rate", "schedule", "milestones", "gamma", "warmup_steps", "momentum"),
        *(
            "weight_decay",
            "bias_lr_multiplier",
            "decay_biases",
            "grad_clip_norm",
            "base_batch_size",
            "ema_decay",
        ),
    ),
    "train": (
        *(
            "steps",
            "batch_size",
            "grad_accumulation_steps",
            "seed",
            "matching",
            "match_iou_threshold",
            "neg_pos_ratio",
        ),
        *("log_every", "eval_every", "checkpoint_every", "max_to_keep", "keep_best", "best_metric"),
        *("keep_period", "on_nonfinite", "profile_steps"),
    ),
    "eval": (
        *(
            "batch_size",
            "score_threshold",
            "nms_iou_threshold",
            "topk_candidates",
            "detections_per_image",
        ),
        *("clip_boxes", "max_box_scale", "metrics", "iou_threshold", "box_convention"),
        *("num_visualizations", "report", "report_score_threshold", "num_report_images"),
    ),
    "runtime": ("cpu_conv",),
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
    cache = Config().runtime.compilation_cache_dir
    return dataclasses.replace(
        config, runtime=dataclasses.replace(config.runtime, compilation_cache_dir=cache)
    )
