"""Config fields taken from a checkpoint, and those that always keep their local values.

A checkpoint may come from a stranger. Its config decides the network, the data and the metrics,
but not which files this machine reads or which resources it spends. Every field is in exactly one
of the two lists; a test fails for a new field until it is.
"""

import dataclasses
from collections.abc import Mapping

from ssd_jax.config import Config


def _split(**sections: str) -> Mapping[str, tuple[str, ...]]:
    return {section: tuple(names.split()) for section, names in sections.items()}


LOCAL_FIELDS = _split(
    # Files that the checkpoint's own variables and classes replace.
    model="init_from",
    data="class_file num_workers",
    # Compiled programs are executed when they are loaded.
    runtime="compilation_cache_dir",
)
"""Fields set to their defaults, whatever the checkpoint's config says, by section."""

TRUSTED_FIELDS = _split(
    model="""classes image_size width_multiplier feature_layers extras batch_norm feature_norm dtype
        image_mean freeze_before""",
    priors="sizes steps aspect_ratios variances clip clip_wh",
    # Annotations and images are only read.
    data="""format root train_split eval_split tfds max_objects use_difficult keep_empty augment
        expand_ratio min_crop_scale max_crop_aspect_ratio vertical_flip""",
    # A record of the training; no reader of a checkpoint uses these.
    optim="""learning_rate schedule milestones gamma warmup_steps momentum weight_decay
        bias_lr_multiplier decay_biases grad_clip_norm base_batch_size ema_decay""",
    train="""steps batch_size grad_accumulation_steps seed matching match_iou_threshold
        neg_pos_ratio log_every eval_every checkpoint_every max_to_keep keep_best best_metric
        keep_period on_nonfinite profile_steps""",
    eval="""batch_size score_threshold nms_iou_threshold topk_candidates detections_per_image
        clip_boxes max_box_scale metrics iou_threshold box_convention num_visualizations report
        report_score_threshold num_report_images""",
    runtime="cpu_conv",
)
"""Fields taken from the checkpoint's config, by section."""


def with_local_fields(config: Config) -> Config:
    """Return `config` with the local values of LOCAL_FIELDS."""
    for section, names in LOCAL_FIELDS.items():
        config = _with_defaults(config, section, names)
    return config


def with_local_cache(config: Config) -> Config:
    """Return the config of a resumed run with the local compilation cache."""
    return _with_defaults(config, "runtime", LOCAL_FIELDS["runtime"])


def _with_defaults(config: Config, section: str, names: tuple[str, ...]) -> Config:
    defaults = getattr(Config(), section)
    values = {name: getattr(defaults, name) for name in names}
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})
