"""Everything an experiment can set, as frozen dataclasses.

A config file returns a `Config`; the command line replaces single fields of it; the resolved
result is saved with every checkpoint. Values are checked when a section is made, and an error
names the field and what to change. The range of a number stands beside its field.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """Range of a number in a config. NaN and infinity are never in it."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    above: bool = False
    """Exclude `low` itself."""
    below: bool = False
    """Exclude `high` itself."""

    def __contains__(self, value: float) -> bool:
        # Comparisons with NaN are false.
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = f"{self.low:,}", f"{self.high:,}"
        if self.above:
            return f"above {low}, at most {high}"
        return f"from {low} up to, not including, {high}" if self.below else f"from {low} to {high}"


# What no experiment comes near, and what memory and JAX's integers bear.
_MOST_STEPS = 1_000_000_000
_MOST_IMAGES = 65_536

COMPILATION_CACHE_DIR = "~/.cache/ssd_jax"
"""Folder where this machine keeps compiled programs, unless it is told otherwise."""

Steps = Annotated[int, Range(1, _MOST_STEPS)]
StepsOrNone = Annotated[int, Range(0, _MOST_STEPS)]
BatchSize = Annotated[int, Range(1, _MOST_IMAGES)]
Fraction = Annotated[float, Range(0, 1)]
Pixels = Annotated[float, Range(0.1, 100_000)]
_Level = Annotated[float, Range(0, 255)]
_Ratio = Annotated[float, Range(0.01, 100)]
_Variance = Annotated[float, Range(0.001, 1000)]
_Factor = Annotated[float, Range(0, 1000, above=True)]
_BelowOne = Annotated[float, Range(0, 1, below=True)]

# VGG16's convolutions up to the last one of the base, in order. conv6 and conv7 are the reduced
# fc6 and fc7 of the SSD paper, section 3.
BASE_LAYERS = (
    *("conv1_1", "conv1_2"),
    *("conv2_1", "conv2_2"),
    *("conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3"),
    *("conv5_1", "conv5_2", "conv5_3"),
    *("conv6", "conv7"),
)


_LONGEST_LINE = 1000


def printable(text: str) -> str:
    """Make one line that any terminal takes of a text, cut in the middle if it is too long."""
    text = " ".join(text.splitlines())
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(ValueError):
    """An error that the user can fix; its one printable line says what to change."""

    status = 2
    """Exit status of a program that ends with it."""
    busy = False
    """Whether a thread still computes, which Python must not wait for: end with os._exit."""

    def __init__(self, message: str) -> None:
        # Names of files, fields and classes come from anywhere.
        super().__init__(printable(message))


class ConfigError(UserError):
    """A value that cannot be used; the message names the field and what to change."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_fields(section: Any, path: str) -> None:
    """Check every field of a section against its type and the range beside it.

    Raises ConfigError for a value of another type, and for a number, also in a tuple, that is not
    finite or out of its range.
    """
    for name, kind in typing.get_type_hints(type(section), include_extras=True).items():
        _check_value(kind, getattr(section, name), f"{path}.{name}".lstrip("."), "is")


def _check_value(kind: Any, value: Any, path: str, verb: str) -> None:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        _check(isinstance(value, tuple | list), f"{path} is {_show(value)}; give a tuple")
        kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
        _check(len(value) == len(kinds), f"{path} {verb} {_show(value)}; give {len(kinds)} values")
        for each, part in zip(kinds, value, strict=True):
            _check_value(each, part, path, "has")
    elif origin is Annotated:
        number, limits = args
        # A bool is an int to Python; a whole number is a float to whoever writes it.
        fits = isinstance(value, int if number is int else int | float)
        fits = fits and not isinstance(value, bool)
        noun = "a whole number" if number is int else "a number"
        _check(fits and value in limits, f"{path} {verb} {_show(value)}; use {noun} {limits}")
    elif origin is Literal:
        choices = ", ".join(map(str, args))
        _check(value in args, f"{path} {verb} {_show(value)}; use one of {choices}")
    else:
        article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
        fits = isinstance(value, kind)
        _check(fits, f"{path} {verb} {_show(value)}; give {article} {kind.__name__}")


def _show(value: Any) -> str:
    """The value as an error shows it: short, also for a number of a million digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}..."


_Channels = Annotated[int, Range(1, 65_536)]


@dataclass(frozen=True)
class ExtraBlock:
    """Two layers after the base: a 1x1 convolution and a wider one."""

    squeeze_channels: _Channels = 128
    """Channels of the 1x1 convolution."""
    channels: _Channels = 256
    """Channels of the second convolution."""
    kernel_size: Annotated[int, Range(1, 32)] = 3
    """Kernel size of the second convolution."""
    stride: Annotated[int, Range(1, 32)] = 1
    """Stride of the second convolution."""
    padding: Annotated[int, Range(0, 32)] = 0
    """Padding of the second convolution (cells)."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults are SSD300."""

    classes: tuple[str, ...] = ()
    """Names of the classes to detect, without background. Empty: read from data.class_file, or
    found in the annotations."""
    image_size: Annotated[int, Range(32, 4096)] = 300
    """Side of the square input (pixels)."""
    width_multiplier: Annotated[float, Range(0, 16, above=True)] = 1.0
    """Multiplier of every layer's channels; 1.0 is VGG16."""
    feature_layers: tuple[str, ...] = (
        "conv4_3",
        "conv7",
        "conv8_2",
        "conv9_2",
        "conv10_2",
        "conv11_2",
    )
    """Layers that feed the heads, from fine to coarse: a convolution of the base, or convK_2 of
    the extra layers, which are counted from conv8."""
    extras: tuple[ExtraBlock, ...] = (
        ExtraBlock(256, 512, stride=2, padding=1),
        ExtraBlock(stride=2, padding=1),
        ExtraBlock(),
        ExtraBlock(),
    )
    """Layers after the base. On the command line: squeeze_channels, channels, kernel_size, stride
    and padding of each block, e.g. 256 512 3 2 1 128 256 3 1 0."""
    batch_norm: bool = False
    """Batch norm after each convolution of base and extras; needed to train from scratch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and loss stay float32."""
    image_mean: tuple[_Level, _Level, _Level] = (123.0, 117.0, 104.0)
    """RGB mean that is subtracted from the image (0 to 255)."""
    pretrained: str = ""
    """File of VGG16 convolutions (.npz or .safetensors) to start the base from; empty: none."""
    pretrained_channels: Literal["bgr", "rgb"] = "bgr"
    """Channel order that the pretrained file's conv1_1 expects; Caffe's and Keras' VGG16: bgr."""
    pretrained_scale: Annotated[float, Range(0, 1_000_000, above=True)] = 1.0
    """What the outputs of the last pretrained layer are multiplied by; VGG16's conv5_3 gives values
    about 50 times as large as layers that start fresh are made for, so use 0.02 before those."""
    init_from: str = ""
    """Checkpoint of this network to start from, e.g. one that ssd_jax.weights imported; the
    class heads keep the rows of classes with the same name. Empty: none."""
    freeze_before: str = ""
    """First layer of the base to train, e.g. conv3_1; the ones before it stay as they are.
    Empty: all are trained."""

    def __post_init__(self) -> None:
        _check_fields(self, "model")
        for block in self.extras:
            _check_fields(block, "model.extras")
        _check(
            len(self.feature_layers) > 0, "model.feature_layers is empty; name at least one layer"
        )
        names = self.layer_names
        for name in self.feature_layers:
            _check(
                name in names and (name in BASE_LAYERS or name.endswith("_2")),
                f"model.feature_layers names {name!r}, which is not a layer that can feed a head; "
                f"with {len(self.extras)} extras there are {', '.join(self._feature_layer_names)}",
            )
        order = [names.index(name) for name in self.feature_layers]
        _check(
            order == sorted(set(order)),
            f"model.feature_layers is {self.feature_layers}; "
            "name each layer once, from fine to coarse",
        )
        _check(
            not (self.pretrained and self.init_from),
            "model.pretrained and model.init_from are both set; start from one of them",
        )
        _check(
            self.freeze_before in ("", *BASE_LAYERS),
            f"model.freeze_before is {self.freeze_before!r}; use one of {', '.join(BASE_LAYERS)}",
        )
        _check(
            len(set(self.classes)) == len(self.classes),
            f"model.classes names a class twice: {self.classes}",
        )

    @property
    def num_classes(self) -> int:
        """Classes with background: what the head predicts for a prior."""
        return len(self.classes) + 1

    @property
    def layer_names(self) -> tuple[str, ...]:
        """All convolutions that the config can build, in order."""
        extra = (f"conv{8 + k}_{i}" for k in range(len(self.extras)) for i in (1, 2))
        return (*BASE_LAYERS, *extra)

    @property
    def _feature_layer_names(self) -> tuple[str, ...]:
        return tuple(n for n in self.layer_names if n in BASE_LAYERS or n.endswith("_2"))

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """The layers of the base before freeze_before."""
        if not self.freeze_before:
            return ()
        return BASE_LAYERS[: BASE_LAYERS.index(self.freeze_before)]


@dataclass(frozen=True)
class PriorConfig:
    """The default boxes of SSD, section 2.2. The defaults are those of SSD300 on VOC."""

    sizes: tuple[Pixels, ...] = (30, 60, 111, 162, 213, 264, 315)
    """Size of each source's square prior, and one more that only the last source's larger square
    uses (pixels of the input image)."""
    steps: tuple[Pixels, ...] = (8, 16, 32, 64, 100, 300)
    """Distance between two cells of each source (pixels). Empty: the image divided by the cells."""
    aspect_ratios: tuple[tuple[_Ratio, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    """Further shapes of each source, width over height; each is used upright as well."""
    variances: tuple[_Variance, _Variance] = (0.1, 0.2)
    """What offsets of centre and of log size are divided by."""
    clip: bool = False
    """Clip (cx, cy, w, h) to [0, 1] as ssd.pytorch does; Caffe does not. Part of the weights."""
    clip_wh: bool = False
    """Clip (w, h) alone to [0, 1] as torchvision does. Part of the weights."""

    def __post_init__(self) -> None:
        _check_fields(self, "priors")
        _check(
            len(self.sizes) >= 2,
            f"priors.sizes is {self.sizes}; give one size a source and one more",
        )
        sources = len(self.sizes) - 1
        _check(
            len(self.aspect_ratios) == sources,
            f"priors.aspect_ratios has {len(self.aspect_ratios)} entries and priors.sizes is for "
            f"{sources} sources; give one entry a source",
        )
        _check(
            len(self.steps) in (0, sources),
            f"priors.steps has {len(self.steps)} entries; give {sources}, or none",
        )


@dataclass(frozen=True)
class TfdsFields:
    """Names of the features of a TFDS data set, / between levels. The defaults fit VOC and COCO."""

    image: str = "image"
    """The image."""
    boxes: str = "objects/bbox"
    """Boxes: a sequence of TFDS's BBoxFeature."""
    labels: str = "objects/label"
    """Classes: a sequence of ClassLabel; their names are the data set's own."""
    difficult: str = "objects/is_difficult"
    """Marks of difficult objects; a data set without this feature has none."""
    crowd: str = "objects/is_crowd"
    """Marks of crowds; a data set without this feature has none."""

    def __post_init__(self) -> None:
        _check_fields(self, "data.tfds")
        for name in ("image", "boxes", "labels"):
            _check(getattr(self, name) != "", f"data.tfds.{name} is empty; name the feature")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and what is done to them."""

    format: Literal["shapes", "voc", "coco", "auto", "tfds"] = "shapes"
    """shapes: scenes generated on the fly; voc: a folder with Annotations/, JPEGImages/ and
    ImageSets/Main/, or a VOCdevkit of them; coco: annotations/instances_SPLIT.json, with the
    images in SPLIT/, images/SPLIT/, images/ or JPEGImages/; auto: voc or coco, whichever the
    folder is; tfds: data sets that python -m ssd_jax.data prepare has built."""
    root: str = ""
    """Folder of the data set (voc, coco); the VOCdevkit where the splits name a year. tfds: the
    folder of all of them; empty: ~/tensorflow_datasets."""
    train_split: str = "train:2000"
    """What to train on. voc: a list in ImageSets/Main; in a VOCdevkit YEAR:LIST. coco: SPLIT, e.g.
    train2017. tfds: NAME:SPLIT, e.g. voc/2007:train. Several are joined by +, e.g.
    2007:trainval+2012:trainval. shapes: NAME:COUNT."""
    eval_split: str = "test:200"
    """What to evaluate on; the same form."""
    class_file: str = ""
    """Text file with one class name a line; empty: model.classes, or found in the annotations."""
    max_objects: Annotated[int, Range(1, 10_000)] = 64
    """Objects that an image may have; ground truth is padded to this number."""
    use_difficult: bool = True
    """Train on objects marked difficult, as Caffe does for VOC. Evaluation sets them aside. COCO's
    crowds are never trained on."""
    keep_empty: bool = True
    """Train on images without an object to train on. Evaluation always has all images."""
    augment: Literal["caffe", "ssd.pytorch", "none"] = "caffe"
    """caffe: the full augmentation of the SSD paper; ssd.pytorch: what that program does, smallest
    IoU of its crops not held; none: resize only."""
    expand_ratio: Annotated[float, Range(1, 100)] = 4.0
    """Largest side of the canvas that an image is placed on (times the image); 1: no expansion."""
    min_crop_scale: Annotated[float, Range(0, 1, above=True)] = 0.3
    """Smallest side of a random crop (times the image); 1: no crop."""
    max_crop_aspect_ratio: Annotated[float, Range(1, 100)] = 2.0
    """Largest stretch of a random crop against the image; 1: none."""
    vertical_flip: bool = False
    """Mirror top to bottom as well; for images without an up, as from a microscope or the air."""
    num_workers: Annotated[int, Range(0, 1024)] = 0
    """Processes that load and augment; 0: in the training process, in threads."""
    tfds: TfdsFields = field(default_factory=TfdsFields)
    """Where a record of a TFDS data set has what; tfds only."""

    def __post_init__(self) -> None:
        _check_fields(self, "data")
        _check(
            self.format in ("shapes", "tfds") or self.root != "",
            "data.root is empty; name the folder of the data set, e.g. --data.root ~/mydata",
        )


@dataclass(frozen=True)
class OptimConfig:
    """SGD and its schedule. The defaults are those of the paper on VOC 07+12."""

    learning_rate: _Factor = 1e-3
    """Rate after the warm-up."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """multistep: times gamma at each milestone; cosine: down to 0 at train.steps."""
    milestones: tuple[StepsOrNone, ...] = (80_000, 100_000)
    """Where the rate drops (steps); multistep only."""
    gamma: _Factor = 0.1
    """Factor at a milestone; multistep only."""
    warmup_steps: StepsOrNone = 0
    """Length of the linear warm-up from 0 (steps)."""
    momentum: _BelowOne = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Range(0, 1000)] = 5e-4
    """L2 decay that is added to the gradient."""
    bias_lr_multiplier: Annotated[float, Range(0, 1000)] = 1.0
    """Learning rate of biases, as a multiple of the rate; Caffe uses 2."""
    decay_biases: bool = True
    """Apply weight decay to biases as well; Caffe does not."""
    grad_clip_norm: Annotated[float, Range(0, 1_000_000_000)] = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    base_batch_size: Annotated[int, Range(0, _MOST_IMAGES)] = 0
    """Batch that learning_rate is for: the rate is multiplied by train.batch_size over this (linear
    scaling). 0: learning_rate as it is."""
    ema_decay: _BelowOne = 0.0
    """Decay of a moving average of the weights, e.g. 0.9998; where there is one it is what is
    evaluated and exported. 0: none."""

    def __post_init__(self) -> None:
        _check_fields(self, "optim")
        _check(
            list(self.milestones) == sorted(set(self.milestones)),
            f"optim.milestones is {self.milestones}; give rising steps",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Length, loss and bookkeeping of the training."""

    steps: Steps = 120_000
    """Length of the training (steps)."""
    batch_size: BatchSize = 32
    """Images a step, over all devices of all processes."""
    grad_accumulation_steps: BatchSize = 1
    """Parts of the batch that are worked on one after the other, for less memory; the loss is that
    of the whole batch. Batch norm takes its statistics over a part."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of initial weights, data order and augmentation."""
    matching: Literal["bipartite", "per_object"] = "bipartite"
    """How priors get objects. bipartite: Caffe's, every object has a prior of its own;
    per_object: ssd.pytorch's, a later object takes a shared prior."""
    match_iou_threshold: Annotated[float, Range(0, 1, above=True)] = 0.5
    """IoU from which a prior is positive."""
    neg_pos_ratio: Annotated[float, Range(0, 1_000_000, above=True)] = 3.0
    """Hard negatives for each positive."""
    log_every: Steps = 10
    """Steps between two lines of the log."""
    eval_every: StepsOrNone = 0
    """Steps between two evaluations; 0: only at the end."""
    checkpoint_every: Steps = 1000
    """Steps between two checkpoints; every step that is evaluated, as the last one, is saved
    too."""
    max_to_keep: Steps = 3
    """CheckpointManager to keep, the latest ones."""
    keep_best: StepsOrNone = 1
    """CheckpointManager to keep besides, the best ones by best_metric."""
    best_metric: str = "mAP"
    """What the best checkpoint has most of, a name in the evaluations' lines of metrics.jsonl:
    mAP, AP/CLASS, voc/mAP, coco/AP75, ..."""
    keep_period: StepsOrNone = 0
    """Keep the checkpoints of multiples of this step besides; 0: no."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does; the state is never touched by it. stop: end
    the run; skip: leave the step out, and count it."""
    profile_steps: StepsOrNone = 0
    """Steps to trace with JAX's profiler, from the fifth after a start; 0: none."""

    def __post_init__(self) -> None:
        _check_fields(self, "train")
        _check(
            self.batch_size % self.grad_accumulation_steps == 0,
            f"train.batch_size {self.batch_size} must divide by train.grad_accumulation_steps "
            f"{self.grad_accumulation_steps}; change one of them",
        )


@dataclass(frozen=True)
class EvalConfig:
    """Detection and its scoring."""

    batch_size: BatchSize = 8
    """Images detected at once."""
    score_threshold: Fraction = 0.01
    """Lowest score of a detection."""
    nms_iou_threshold: Fraction = 0.45
    """IoU above which the lower of two boxes of a class is dropped."""
    topk_candidates: Annotated[int, Range(1, 1_000_000)] = 400
    """Boxes of a class that enter suppression, the best ones."""
    detections_per_image: Annotated[int, Range(1, 100_000)] = 200
    """Detections kept of an image, the best ones."""
    clip_boxes: bool = False
    """Clip boxes to the image before suppression, as torchvision does; False: after it."""
    max_box_scale: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Largest side of a box (times its prior's); torchvision's is 62.5. 0: no limit."""
    metrics: tuple[Literal["voc", "voc07", "coco"], ...] = ("voc",)
    """What to compute; the first one's mean is the run's mAP. voc: area under the precision-recall
    curve (VOC 2010 and later); voc07: 11 points; coco: COCO's twelve figures."""
    iou_threshold: Fraction = 0.5
    """IoU from which a detection counts as right; voc and voc07 only."""
    box_convention: Literal["inclusive", "exclusive"] = "inclusive"
    """inclusive: a box covers its last pixel, as in the VOC devkit; exclusive: it ends before. voc
    and voc07 only."""
    num_visualizations: Annotated[int, Range(0, 10_000)] = 16
    """Images to draw with their detections and their ground truth."""
    report: bool = True
    """Write report.html: curves, errors, confusions, the best and the worst images."""
    report_score_threshold: Fraction = 0.3
    """Score from which a detection is drawn, and counted as an error or a confusion."""
    num_report_images: Annotated[int, Range(0, 10_000)] = 8
    """Best and worst images in the report, so many of each."""

    def __post_init__(self) -> None:
        _check_fields(self, "eval")
        _check(
            0 < len(self.metrics) == len(set(self.metrics)),
            f"eval.metrics is {self.metrics}; name voc, voc07 or coco, each once",
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings of the process, which do not change what is computed."""

    compilation_cache_dir: str = COMPILATION_CACHE_DIR
    """Folder for compiled programs, which later starts reuse; empty: none. The environment variable
    JAX_COMPILATION_CACHE_DIR takes precedence. Never taken from a checkpoint's config."""
    cpu_conv: Literal["auto", "direct", "winograd", "plain"] = "auto"
    """Algorithm of 3x3 convolutions on CPU; other platforms always use the compiler's own.
    auto: winograd from 64 channels on; direct: faster to compile; plain: the compiler's own."""

    def __post_init__(self) -> None:
        _check_fields(self, "runtime")


@dataclass(frozen=True)
class Config:
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    priors: PriorConfig = field(default_factory=PriorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _check_fields(self, "")
        _check(
            len(self.priors.sizes) == len(self.model.feature_layers) + 1,
            f"priors.sizes has {len(self.priors.sizes)} entries and model.feature_layers "
            f"{len(self.model.feature_layers)}; give one size a source and one more",
        )
        if self.optim.schedule == "multistep":
            late = [m for m in self.optim.milestones if m >= self.train.steps]
            _check(
                not late,
                f"optim.milestones has {late}, past the last step; "
                f"train.steps is {self.train.steps}: lower the milestones or raise the steps",
            )
        _check(
            self.optim.warmup_steps < self.train.steps,
            f"optim.warmup_steps is {self.optim.warmup_steps} and train.steps "
            f"{self.train.steps}; warm up for fewer steps",
        )


def to_json(config: Config) -> str:
    """The config as indented JSON; `from_json` gives it back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The config that `to_json` wrote.

    Raises ConfigError for text that is not such a config, naming the field.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config is not valid JSON: {error}") from None
    section = tree.get("eval") if isinstance(tree, dict) else None
    # Configs that were saved before an evaluation could have several metrics.
    if isinstance(section, dict) and "metric" in section:
        section.setdefault("metrics", [section.pop("metric")])
    return _parse(Config, tree, "config")


def _parse(kind: Any, value: Any, path: str) -> Any:
    """`value` of JSON as `kind`: dataclasses, tuples, Literals and plain types, checked."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        _check(isinstance(value, dict), f"{path} is {_show(value)}; expected an object")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        _check(not unknown, f"{path} has unknown fields: {', '.join(unknown)}")
        return kind(**{k: _parse(hints[k], v, f"{path}.{k}") for k, v in value.items()})
    if origin is tuple:
        _check(isinstance(value, list), f"{path} is {_show(value)}; expected a list")
        if args[-1] is Ellipsis:
            return tuple(_parse(args[0], v, path) for v in value)
        _check(len(value) == len(args), f"{path} is {_show(value)}; expected {len(args)} values")
        return tuple(_parse(a, v, path) for a, v in zip(args, value, strict=True))
    if origin is Literal:
        _check(value in args, f"{path} is {_show(value)}; use one of {', '.join(map(str, args))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    _check(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
        f"{path} is {_show(value)}; expected {kind.__name__}",
    )
    return value
