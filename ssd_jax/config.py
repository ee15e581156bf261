"""Experiment configuration as frozen dataclasses.

A config file returns a `Config`; the command line overrides single fields; the resolved config is
saved with every checkpoint. Values are validated when a section is constructed, against the type
and the range declared beside each field.
"""

import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """Range of a number in a config. It never contains NaN or infinity."""

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


# Far above any experiment, and within memory and the range of JAX's integers.
_MOST_STEPS = 1_000_000_000
_MOST_IMAGES = 65_536

COMPILATION_CACHE_DIR = "~/.cache/ssd_jax"
"""Default folder for compiled programs."""

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
    """Return a text as one printable line, shortened in the middle if it is too long."""
    text = " ".join(text.splitlines())
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(names: Sequence[str], most: int) -> str:
    """Join the first `most` names with commas, and say how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class UserError(ValueError):
    """An error that the user can fix. Its message is one printable line that says how."""

    status = 2
    """Exit code of a program that ends with this error."""
    busy = False
    """A background thread is still running: end with os._exit instead of waiting for it."""

    def __init__(self, message: str) -> None:
        # The message may contain names of files, fields and classes of any origin.
        super().__init__(printable(message))


class ConfigError(UserError):
    """An invalid config value. The message names the field and the change to make."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_fields(section: Any, path: str) -> None:
    """Check every field of a section against its declared type and range.

    Raises:
        ConfigError: a value has another type, or a number (also within a tuple) is not finite or
            out of range.
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
        # bool is a subclass of int; integers are accepted as floats.
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
    """Return a short representation of any value, even of a number with a million digits."""
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
    """Names of the classes to detect, without background. Empty: taken from data.class_file or
    the annotations."""
    image_size: Annotated[int, Range(32, 4096)] = 300
    """Side of the square input (pixels)."""
    width_multiplier: Annotated[float, Range(0, 16, above=True)] = 1.0
    """Multiplier for the channels of every layer; 1.0 is VGG16."""
    feature_layers: tuple[str, ...] = (
        "conv4_3",
        "conv7",
        "conv8_2",
        "conv9_2",
        "conv10_2",
        "conv11_2",
    )
    """Layers that feed the heads, from fine to coarse: a convolution of the base, or convK_2 of
    the extra layers, which are numbered from conv8."""
    extras: tuple[ExtraBlock, ...] = (
        ExtraBlock(256, 512, stride=2, padding=1),
        ExtraBlock(stride=2, padding=1),
        ExtraBlock(),
        ExtraBlock(),
    )
    """Layers after the base. On the command line: squeeze_channels, channels, kernel_size, stride
    and padding of each block, e.g. 256 512 3 2 1 128 256 3 1 0."""
    batch_norm: bool = False
    """Use batch norm after each convolution of base and extras; needed to train from scratch."""
    feature_norm: Literal["l2", "affine"] = "l2"
    """Normalization of feature layers before conv6. l2: L2 normalization with a scale per channel
    (SSD); affine: a scale and an offset per channel, as weights of pytorch-ssd need."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the computation; parameters and loss stay float32."""
    image_mean: tuple[_Level, _Level, _Level] = (123.0, 117.0, 104.0)
    """RGB mean subtracted from the image (0 to 255)."""
    init_from: str = ""
    """Weights to start from, of a detector or of a base network alone: a name that ssd-jax weights
    list shows, a run, one of its checkpoints, a file of weights, or hf://USER/REPO. The class heads
    keep the rows of classes with the same name. Empty: random initialization."""
    freeze_before: str = ""
    """First layer of the base to train, e.g. conv3_1; earlier layers are frozen. Empty: train all
    layers."""

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
            self.freeze_before in ("", *BASE_LAYERS),
            f"model.freeze_before is {self.freeze_before!r}; use one of {', '.join(BASE_LAYERS)}",
        )
        _check(
            len(set(self.classes)) == len(self.classes),
            f"model.classes names a class twice: {self.classes}",
        )

    @property
    def num_classes(self) -> int:
        """Number of classes with background, as predicted for each prior."""
        return len(self.classes) + 1

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all convolutions of the network, in order."""
        extra = (f"conv{8 + k}_{i}" for k in range(len(self.extras)) for i in (1, 2))
        return (*BASE_LAYERS, *extra)

    @property
    def _feature_layer_names(self) -> tuple[str, ...]:
        return tuple(n for n in self.layer_names if n in BASE_LAYERS or n.endswith("_2"))

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """Layers of the base before `freeze_before`."""
        if not self.freeze_before:
            return ()
        return BASE_LAYERS[: BASE_LAYERS.index(self.freeze_before)]


@dataclass(frozen=True)
class PriorConfig:
    """The default boxes of SSD, section 2.2. The defaults are those of SSD300 on VOC."""

    sizes: tuple[Pixels, ...] = (30, 60, 111, 162, 213, 264, 315)
    """Side of each feature layer's square prior, and one more for the larger square of the last
    layer (pixels of the input image)."""
    steps: tuple[Pixels, ...] = (8, 16, 32, 64, 100, 300)
    """Distance between two cells of each feature layer (pixels). Empty: image size / cells."""
    aspect_ratios: tuple[tuple[_Ratio, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    """Further aspect ratios of each feature layer; each is also used inverted."""
    variances: tuple[_Variance, _Variance] = (0.1, 0.2)
    """Divisors of the offsets of the centre and of the log size."""
    clip: bool = False
    """Clip (cx, cy, w, h) to [0, 1] as ssd.pytorch does; Caffe does not. Belongs to the weights."""
    clip_wh: bool = False
    """Clip only (w, h) to [0, 1] as torchvision does. Belongs to the weights."""

    def __post_init__(self) -> None:
        _check_fields(self, "priors")
        _check(
            len(self.sizes) >= 2,
            f"priors.sizes is {self.sizes}; give one size per feature layer and one more",
        )
        layers = len(self.sizes) - 1
        _check(
            len(self.aspect_ratios) == layers,
            f"priors.aspect_ratios has {len(self.aspect_ratios)} entries and priors.sizes is for "
            f"{layers} feature layers; give one entry per feature layer",
        )
        _check(
            len(self.steps) in (0, layers),
            f"priors.steps has {len(self.steps)} entries; give {layers}, or none",
        )


@dataclass(frozen=True)
class TfdsFields:
    """Feature names of a TFDS dataset, with / between levels. The defaults fit VOC and COCO."""

    image: str = "image"
    """Image feature."""
    boxes: str = "objects/bbox"
    """Boxes: a sequence of TFDS's BBoxFeature."""
    labels: str = "objects/label"
    """Classes: a sequence of ClassLabel, which also gives the class names."""
    difficult: str = "objects/is_difficult"
    """Flags of difficult objects; optional."""
    crowd: str = "objects/is_crowd"
    """Flags of crowd annotations; optional."""

    def __post_init__(self) -> None:
        _check_fields(self, "data.tfds")
        for name in ("image", "boxes", "labels"):
            _check(getattr(self, name) != "", f"data.tfds.{name} is empty; name the feature")


@dataclass(frozen=True)
class DataConfig:
    """Dataset, loading and augmentation."""

    format: Literal["shapes", "voc", "coco", "yolo", "auto", "tfds"] = "shapes"
    """shapes: synthetic scenes, generated on the fly; voc: a folder with Annotations/,
    JPEGImages/ and ImageSets/Main/, or a VOCdevkit with such folders; coco:
    annotations/instances_SPLIT.json, with the images in SPLIT/, images/SPLIT/, images/ or
    JPEGImages/; yolo: a folder with data.yaml, and labels/ beside images/; auto: voc, coco or
    yolo, detected from the folder; tfds: datasets built by ssd-jax data prepare."""
    root: str = ""
    """Folder of the dataset (voc, coco, yolo); the VOCdevkit if the splits name a year; yolo: or
    its YAML file. tfds: the TFDS data folder; empty: ~/tensorflow_datasets."""
    train_split: str = "train:2000"
    """Split to train on. voc: a list in ImageSets/Main; in a VOCdevkit YEAR:LIST. coco: SPLIT,
    e.g. train2017. yolo: train, val or test of data.yaml. tfds: NAME:SPLIT, e.g. voc/2007:train.
    Several are joined by +, e.g. 2007:trainval+2012:trainval. shapes: NAME:COUNT."""
    eval_split: str = "test:200"
    """Split to evaluate on, in the same format."""
    class_file: str = ""
    """Text file with one class name per line; empty: model.classes, or the annotations' classes."""
    max_objects: Annotated[int, Range(1, 10_000)] = 64
    """Maximum number of objects in an image; ground truth is padded to it."""
    use_difficult: bool = True
    """Train on objects marked difficult, as Caffe does for VOC. Evaluation ignores them. COCO's
    crowds are never trained on."""
    keep_empty: bool = True
    """Train on images without objects as well. Evaluation always uses all images."""
    augment: Literal["caffe", "ssd.pytorch", "none"] = "caffe"
    """caffe: the full augmentation of the SSD paper; ssd.pytorch: that program's augmentation,
    which does not enforce the minimum IoU of its crops; none: resize only."""
    expand_ratio: Annotated[float, Range(1, 100)] = 4.0
    """Maximum expansion of the canvas, relative to the image; 1: no expansion."""
    min_crop_scale: Annotated[float, Range(0, 1, above=True)] = 0.3
    """Minimum side of a random crop, relative to the image; 1: no crop."""
    max_crop_aspect_ratio: Annotated[float, Range(1, 100)] = 2.0
    """Maximum aspect ratio of a random crop, relative to the image's; 1: unchanged."""
    vertical_flip: bool = False
    """Flip vertically as well; for images without a fixed orientation, e.g. aerial images."""
    num_workers: Annotated[int, Range(0, 1024)] = 0
    """Worker processes for loading and augmentation; 0: threads of the training process."""
    tfds: TfdsFields = field(default_factory=TfdsFields)
    """Feature names; tfds only."""

    def __post_init__(self) -> None:
        _check_fields(self, "data")
        _check(
            self.format in ("shapes", "tfds") or self.root != "",
            "data.root is empty; name the folder of the dataset, e.g. --data.root ~/mydata",
        )


@dataclass(frozen=True)
class OptimConfig:
    """SGD and its schedule. The defaults are those of the paper on VOC 07+12."""

    learning_rate: _Factor = 1e-3
    """Learning rate after the warm-up."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """multistep: multiply by gamma at each milestone; cosine: decay to 0 at train.steps."""
    milestones: tuple[StepsOrNone, ...] = (80_000, 100_000)
    """Steps at which the learning rate drops; multistep only."""
    gamma: _Factor = 0.1
    """Factor applied at each milestone; multistep only."""
    warmup_steps: StepsOrNone = 0
    """Length of the linear warm-up from 0 (steps)."""
    momentum: _BelowOne = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Range(0, 1000)] = 5e-4
    """L2 weight decay, added to the gradient."""
    bias_lr_multiplier: Annotated[float, Range(0, 1000)] = 1.0
    """Learning rate of biases, as a multiple of the rate; Caffe uses 2."""
    decay_biases: bool = True
    """Apply weight decay to biases as well; Caffe does not."""
    grad_clip_norm: Annotated[float, Range(0, 1_000_000_000)] = 0.0
    """Maximum global norm of the gradient; 0: no clipping."""
    base_batch_size: Annotated[int, Range(0, _MOST_IMAGES)] = 0
    """Batch size for which learning_rate is given: the rate is multiplied by train.batch_size
    divided by this (linear scaling). 0: no scaling."""
    ema_decay: _BelowOne = 0.0
    """EMA decay, e.g. 0.9998; 0 disables EMA. If enabled, the EMA weights are evaluated and
    exported."""

    def __post_init__(self) -> None:
        _check_fields(self, "optim")
        _check(
            list(self.milestones) == sorted(set(self.milestones)),
            f"optim.milestones is {self.milestones}; list them in ascending order",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Length, loss, logging and checkpoints of a training run."""

    steps: Steps = 120_000
    """Number of training steps."""
    batch_size: BatchSize = 32
    """Images per step, over all devices of all processes."""
    grad_accumulation_steps: BatchSize = 1
    """Number of equal parts of the batch that are processed one after the other to save memory.
    The loss is that of the whole batch; batch norm uses the statistics of each part."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the initial weights, data order and augmentation."""
    matching: Literal["bipartite", "per_object"] = "bipartite"
    """Matching rule. bipartite (Caffe): every object has its own prior; per_object
    (ssd.pytorch): if objects share their best prior, the last one takes it."""
    match_iou_threshold: Annotated[float, Range(0, 1, above=True)] = 0.5
    """Minimum IoU of a positive prior."""
    neg_pos_ratio: Annotated[float, Range(0, 1_000_000, above=True)] = 3.0
    """Number of hard negatives per positive prior."""
    log_every: Steps = 10
    """Steps between log lines."""
    eval_every: StepsOrNone = 0
    """Steps between evaluations; 0: only at the end."""
    checkpoint_every: Steps = 1000
    """Steps between checkpoints. Evaluated steps, including the last step, are also saved."""
    max_to_keep: Steps = 3
    """Number of latest checkpoints to keep."""
    keep_best: StepsOrNone = 1
    """Number of best checkpoints, by best_metric, to keep in addition."""
    best_metric: str = "mAP"
    """Metric that ranks the checkpoints, as named in the evaluation lines of metrics.jsonl: mAP,
    AP/CLASS, voc/mAP, coco/AP75, ..."""
    keep_period: StepsOrNone = 0
    """Also keep the checkpoints at multiples of this step; 0: none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a loss or gradient that is not finite; such a step never changes the state.
    stop: end the run; skip: skip the step and count it."""
    profile_steps: StepsOrNone = 0
    """Steps to trace with JAX's profiler, from the sixth step after a start; 0: none."""

    def __post_init__(self) -> None:
        _check_fields(self, "train")
        _check(
            self.batch_size % self.grad_accumulation_steps == 0,
            f"train.batch_size {self.batch_size} must be divisible by "
            f"train.grad_accumulation_steps {self.grad_accumulation_steps}; change one of them",
        )


@dataclass(frozen=True)
class EvalConfig:
    """Detection, metrics and reports."""

    batch_size: BatchSize = 8
    """Images per detection batch."""
    score_threshold: Fraction = 0.01
    """Minimum score of a detection."""
    nms_iou_threshold: Fraction = 0.45
    """IoU above which NMS removes the lower-scoring of two boxes of a class."""
    topk_candidates: Annotated[int, Range(1, 1_000_000)] = 400
    """Highest-scoring boxes of each class that enter NMS."""
    detections_per_image: Annotated[int, Range(1, 100_000)] = 200
    """Maximum number of detections per image, the highest-scoring ones."""
    clip_boxes: bool = False
    """Clip boxes to the image before NMS, as torchvision does; False: after it."""
    max_box_scale: Annotated[float, Range(0, 1_000_000)] = 0.0
    """Maximum side of a box, relative to its prior; torchvision uses 62.5. 0: no limit."""
    metrics: tuple[Literal["voc", "voc07", "coco"], ...] = ("voc",)
    """Metrics; the first is the run's mAP. voc: area under the precision-recall curve (VOC 2010
    and later); voc07: 11-point interpolation; coco: COCO's twelve metrics."""
    iou_threshold: Fraction = 0.5
    """Minimum IoU of a true positive; voc and voc07 only."""
    box_convention: Literal["inclusive", "exclusive"] = "inclusive"
    """inclusive: xmax and ymax belong to the box, as in the VOC devkit; exclusive: they do not.
    voc and voc07 only."""
    num_visualizations: Annotated[int, Range(0, 10_000)] = 16
    """Images to draw with detections and ground truth."""
    report: bool = True
    """Write report.html: curves, errors, confusion matrix, best and worst images."""
    report_score_threshold: Fraction = 0.3
    """Minimum score of detections that are drawn and counted in the error analysis."""
    num_report_images: Annotated[int, Range(0, 10_000)] = 8
    """Number of best and of worst images in the report."""

    def __post_init__(self) -> None:
        _check_fields(self, "eval")
        _check(
            0 < len(self.metrics) == len(set(self.metrics)),
            f"eval.metrics is {self.metrics}; name voc, voc07 or coco, each once",
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings of the process; they affect results by rounding at most."""

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
    """Configuration of one experiment."""

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
            f"{len(self.model.feature_layers)}; give one size per feature layer and one more",
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
    """Serialize a config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Parse a config that `to_json` wrote.

    Raises:
        ConfigError: the text is not such a config; the message names the field.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config is not valid JSON: {error}") from None
    return _from_tree(Config, tree, "")


def _from_tree(kind: Any, value: Any, path: str) -> Any:
    """Convert JSON objects to dataclasses and lists to tuples; the dataclasses check the rest."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        name = path or "the config"
        _check(isinstance(value, dict), f"{name} is {_show(value)}; give an object")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        _check(not unknown, f"{name} has unknown fields: {', '.join(unknown)}")
        return kind(
            **{k: _from_tree(hints[k], v, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
        )
    if isinstance(value, list):
        part = (typing.get_args(kind) or (Any,))[0]
        return tuple(_from_tree(part, v, path) for v in value)
    return value
