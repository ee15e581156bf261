"""Command that detects objects in images and videos."""

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from tyro import conf

from ssd_jax.cli.arguments import Args, Checkpoint, CommaSeparated, Flag, parse_args
from ssd_jax.config import COMPILATION_CACHE_DIR, ConfigError, Range, printable, shorten
from ssd_jax.inference.inputs import Input, check_outputs, find_inputs
from ssd_jax.io import atomic_write
from ssd_jax.streams import program_name

if TYPE_CHECKING:
    from rich.progress import Progress

    from ssd_jax.inference.detector import Detections, Detector
    from ssd_jax.inference.drawing import Image

# Unreadable files are reported here. OpenCV and FFmpeg read these variables when first used.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_LEGIBLE_SIDE = 300  # pixels: images with a shorter side are enlarged to keep names legible
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class InputArgs(Args):
    """Arguments of commands that detect in files."""

    main_flag: ClassVar[str] = "--checkpoint"

    inputs: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="INPUT [INPUT ...]")] = ()
    """Images, videos, folders, quoted patterns or indices of cameras."""
    checkpoint: Checkpoint
    best: Flag = False
    """Use the run's best checkpoint instead of its newest."""
    out: Annotated[Path, conf.arg(metavar="DIR")] = Path("predictions")
    """Folder of the output files."""


@dataclass(frozen=True, kw_only=True)
class PredictArgs(InputArgs):
    """Detect objects in images and videos.

    Writes NAME.jpg or NAME.mp4 with the boxes drawn, and detections.json in the format of COCO's
    results with the names of files and classes. `ssd-jax benchmark` times the detector instead.

    Exit status: 0 done; 1 some inputs could not be read; 2 invalid arguments.
    """

    advice: ClassVar[Mapping[str, str]] = {
        "--benchmark": "--benchmark is a command, ssd-jax benchmark; leave it out",
        "--batch-sizes": "--batch-sizes belongs to ssd-jax benchmark; use --batch-size",
    }

    score_threshold: Annotated[float, Range(0, 1)] = 0.5
    """Lowest score of the detections."""
    classes: CommaSeparated | None = None
    """Classes to detect; default: all."""
    batch_size: Annotated[int, Range(1, 65_536)] = 8
    """Images processed at once."""
    compilation_cache_dir: Annotated[str, conf.arg(metavar="DIR")] = COMPILATION_CACHE_DIR
    """Folder that keeps compiled programs for the next start, unless JAX_COMPILATION_CACHE_DIR
    names one; '': none."""
    xml: Flag = False
    """Also write xml/NAME.xml in VOC's format for each image."""


def main(arguments: Sequence[str]) -> int:
    """Detect objects in images and videos."""
    args = parse_args(PredictArgs, arguments)
    if not args.inputs:
        raise ConfigError("an input is missing; name images, videos or folders")
    inputs = find_inputs(args.inputs)
    check_outputs(inputs, args.out)
    return _predict(args, inputs)


def _predict(args: PredictArgs, inputs: Sequence[Input]) -> int:
    from ssd_jax.distributed import use_compilation_cache
    from ssd_jax.inference.detector import Detector
    from ssd_jax.weights.trained import find_trained

    use_compilation_cache(args.compilation_cache_dir)
    images = [each for each in inputs if each.kind == "image"]
    videos = [each for each in inputs if each.kind != "image"]
    detector = Detector.from_checkpoint(
        find_trained(args.checkpoint, best=args.best),
        # Fewer images than a batch are not padded.
        batch_size=args.batch_size if videos else min(args.batch_size, len(images)),
        threshold=args.score_threshold,
    )
    predictor = _Predictor(detector, args.out, _select_classes(args.classes, detector.names))
    try:
        (args.out / "xml" if args.xml else args.out).mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        detector.compile()
        compiled = time.perf_counter()
        try:
            with _progress_bars() as progress:
                predictor.predict_images(images, progress, xml=args.xml)
                for video in videos:
                    predictor.predict_video(video, progress)
        except KeyboardInterrupt:
            # Hours of images may be done.
            predictor.write_rows()
            done = f"detections.json has the {predictor.num_images} images and frames done"
            print(f"{program_name()}: stopped; {done}", file=sys.stderr)
            raise
        predictor.write_rows()
        seconds = time.perf_counter() - compiled
    except OSError as error:
        raise ConfigError(f"--out: {error}") from None
    predictor.summarize(seconds, compiled - start)
    if predictor.failed:
        failed = f"{len(predictor.failed)} of {len(inputs)} inputs could not be read"
        print(f"{program_name()}: {failed}", file=sys.stderr)
    return 1 if predictor.failed else 0


@dataclass
class _Predictor:
    """A detector and its results so far."""

    detector: "Detector"
    out: Path
    """Folder of the output files."""
    labels: Sequence[int]
    """Classes to report."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Detections in the format of COCO's results."""
    num_images: int = 0
    """Number of images and frames processed."""
    seconds: float = 0.0
    """Time spent in the detector (s)."""
    failed: list[str] = field(default_factory=list)
    """Inputs that could not be read."""

    def predict_images(self, inputs: Sequence[Input], progress: "Progress", *, xml: bool) -> None:
        """Detect in image files and draw the detections; skip those that cannot be read."""
        from ssd_jax.inference.drawing import save_image
        from ssd_jax.inference.results import voc_xml

        if not inputs:
            return
        task = progress.add_task("images", total=len(inputs))
        for batch in _batches(self._read_images(inputs), self.detector.batch_size):
            results = self._detect([image for _, image in batch])
            for (each, image), detections in zip(batch, results, strict=True):
                self._add_rows(detections, each)
                save_image(each.output(self.out), _draw(detections, image))
                if xml:
                    annotation = voc_xml(detections, each.name, image)
                    atomic_write(self.out / "xml" / f"{each.stem}.xml", annotation)
            progress.update(task, completed=self.num_images + len(self.failed))

    def predict_video(self, video: Input, progress: "Progress") -> None:
        """Detect in a video, or in a camera until it is interrupted, and draw the detections."""
        import cv2

        from ssd_jax.inference.video import VideoWriter, read_frames

        live = video.kind == "camera"
        name = f"camera {video.name}" if live else video.name
        if problem := video.problem():  # FFmpeg would wait for the other end of a pipe
            self._fail(video, f"{name} {problem}")
            return
        capture = cv2.VideoCapture(int(video.name) if live else video.name)
        if not capture.isOpened():
            self._fail(video, f"{name} cannot be opened")
            return
        total = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        task = progress.add_task(video.stem, total=total if total > 0 and not live else None)
        frame = 0
        with (
            VideoWriter(video.output(self.out), capture.get(cv2.CAP_PROP_FPS)) as writer,
            # A camera's video is kept when it is stopped.
            contextlib.suppress(KeyboardInterrupt) if live else contextlib.nullcontext(),
        ):
            for batch in _batches(read_frames(capture), self.detector.batch_size):
                for image, detections in zip(batch, self._detect(batch), strict=True):
                    writer.write(_draw(detections, image))
                    self._add_rows(detections, video, frame)
                    frame += 1
                    progress.advance(task)
        capture.release()
        if frame == 0:
            self._fail(video, f"{name} has no frame that can be decoded")

    def write_rows(self) -> None:
        """Write detections.json, a row a line."""
        rows = ",\n".join(map(json.dumps, self.rows))
        atomic_write(self.out / "detections.json", f"[{rows}]\n".encode())

    def summarize(self, seconds: float, compile_seconds: float) -> None:
        """Print the number of images and the speed."""
        print(f"{self.num_images} images and frames, {len(self.rows)} detections; see {self.out}")
        if self.num_images:
            print(
                f"{self.num_images / seconds:.1f} images/s with reading, drawing and writing, "
                f"{self.num_images / self.seconds:.1f} in the detector alone; "
                f"compiled in {compile_seconds:.1f} s before"
            )

    def _read_images(self, inputs: Sequence[Input]) -> Iterator[tuple[Input, "Image"]]:
        from ssd_jax.data.errors import DataError
        from ssd_jax.inference.detector import load_image

        for each in inputs:
            try:
                if problem := each.problem():
                    raise DataError(f"{each.name} {problem}")
                yield each, load_image(each.name)
            except DataError as error:
                self._fail(each, error.finding.message)

    def _detect(self, images: Sequence["Image"]) -> list["Detections"]:
        import numpy as np

        start = time.perf_counter()
        results = self.detector(images)
        self.seconds += time.perf_counter() - start
        return [each.select(np.isin(each.labels, self.labels)) for each in results]

    def _add_rows(self, detections: "Detections", source: Input, frame: int | None = None) -> None:
        from ssd_jax.inference.results import coco_rows

        self.num_images += 1
        self.rows += coco_rows(detections, self.num_images, source.name, frame)

    def _fail(self, source: Input, reason: str) -> None:
        """Report an input that cannot be read."""
        self.failed.append(source.name)
        print(f"{program_name()}: {printable(reason)}", file=sys.stderr)


def _progress_bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.speed:.1f}/s"),
        console=Console(highlight=False),
        disable=not sys.stdout.isatty(),
    )


def _draw(detections: "Detections", image: "Image") -> "Image":
    """Draw the boxes; enlarge a small image to keep names legible."""
    short, long = sorted(image.shape[:2])
    return detections.draw(
        image, factor=max(1.0, min(_LEGIBLE_SIDE / short, 4 * _LEGIBLE_SIDE / long))
    )


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _select_classes(classes: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Return the labels of the named classes; None: all."""
    if classes is None:
        return list(range(len(names)))
    classes = [name.strip() for name in classes]
    for name in classes:
        if name not in names:
            raise ConfigError(f"--classes: {name!r} is not one of {shorten(names, 30)}")
    return [names.index(name) for name in classes]
