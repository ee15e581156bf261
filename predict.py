"""Detect objects in images and videos with a trained checkpoint.

python predict.py --checkpoint DIR INPUT [INPUT ...] [--out DIR] [--score-threshold 0.5]
"""

import argparse
import contextlib
import errno
import glob
import json
import math
import os
import stat
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ssd_jax.cli import Parser, add_cache_flag, run_main
from ssd_jax.config import ConfigError
from ssd_jax.inference.result_rows import detection_rows
from ssd_jax.io import exists, is_dir

if TYPE_CHECKING:
    from rich.progress import Progress

    from ssd_jax.inference.detector import Detections, Detector
    from ssd_jax.inference.drawing import Image

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")
_LEGIBLE = 300  # pixels: images of a shorter side are drawn larger
_FRAMES_PER_S = 25.0  # where a video or a camera does not tell
_T = TypeVar("_T")

# What cannot be read is told here; OpenCV and FFmpeg read these when they are first used.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_DESCRIPTION = """Detect objects in images and videos.

OUT gets NAME.jpg or NAME.mp4 with the boxes drawn, and detections.json: a list in the form of
COCO's results, with names of files and classes. The exit status is 1 if an input could not be
read.

With --benchmark nothing is drawn: the detector is timed on the images given, or on generated ones,
at each of --batch-sizes, and OUT gets benchmark.json."""


@dataclass(frozen=True)
class Input:
    """One file or camera."""

    name: str
    """As it is told: a path, or the number of a camera."""
    stem: str
    """Of what is written for it; no two inputs have the same."""
    kind: str
    """image, video or camera."""


@dataclass
class Results:
    """What the run gave so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Detections as COCO's results have them."""
    images: int = 0
    """Images and frames detected."""
    seconds: float = 0.0
    """In the detector."""
    failed: list[str] = field(default_factory=list)
    """Names of inputs that could not be read."""

    def add(self, found: "Detections", file_name: str, frame: int | None = None) -> None:
        """The detections of the next image, whose id is its number from 1 on."""
        self.images += 1
        self.rows += detection_rows(found, image_id=self.images, file_name=file_name, frame=frame)

    def fail(self, name: str, why: str) -> None:
        """Say that an input could not be read, and go on."""
        from ssd_jax.data.errors import printable

        self.failed.append(name)
        print(f"predict.py: {printable(why)}", file=sys.stderr)


def main(arguments: Sequence[str]) -> None:
    """Parse the command line, detect, draw and write.

    Raises SystemExit(1) at the end where an input could not be read.
    """
    own = _parse(arguments)
    if own.benchmark:
        _benchmark(own)
        return
    inputs = find_inputs(own.inputs)
    _check_outputs(inputs, own.out)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ssd_jax.checkpoints.reader import find_checkpoint
    from ssd_jax.distributed import use_compilation_cache
    from ssd_jax.inference.detector import Detector
    from ssd_jax.io import atomic_write

    use_compilation_cache(own.compilation_cache_dir)
    # One image is not made a batch of many.
    still = all(i.kind == "image" for i in inputs)
    detector = Detector.from_checkpoint(
        find_checkpoint(own.checkpoint, best=own.best),
        batch_size=min(own.batch_size, len(inputs)) if still else own.batch_size,
        threshold=own.score_threshold,
    )
    wanted = _wanted(own.classes, detector.names)
    try:
        (own.out / "xml" if own.xml else own.out).mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        detector.compile()
        compiled = time.perf_counter()
        results = Results()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.speed:.1f}/s"),
            console=Console(highlight=False),
            disable=not sys.stdout.isatty(),
        ) as progress:
            images = [i for i in inputs if i.kind == "image"]
            try:
                detect_images(detector, images, own.out, wanted, results, progress, xml=own.xml)
                for video in inputs:
                    if video.kind != "image":
                        detect_video(detector, video, own.out, wanted, results, progress)
            except KeyboardInterrupt:
                # Hours of images may be done.
                atomic_write(own.out / "detections.json", _json_lines(results.rows))
                done = f"detections.json has the {results.images} images and frames done"
                print(f"predict.py: stopped; {done}", file=sys.stderr)
                raise
        seconds = time.perf_counter() - compiled
        atomic_write(own.out / "detections.json", _json_lines(results.rows))
    except OSError as error:
        raise ConfigError(f"--out: {error}") from None
    _summarize(results, own.out, seconds, compiled - start)
    if results.failed:
        of = f"{len(results.failed)} of {len(inputs)} inputs could not be read"
        print(f"predict.py: {of}", file=sys.stderr)
        raise SystemExit(1)


def _benchmark(own: argparse.Namespace) -> None:
    """Time the detector of the checkpoint, print a table and write benchmark.json."""
    for name, unset in (("classes", None), ("xml", False)):
        if getattr(own, name) != unset:
            raise ConfigError(f"--{name} does not go with --benchmark; leave it out")
    sizes = own.batch_sizes.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ConfigError(f"--batch-sizes is {own.batch_sizes}; write numbers from 1 on: 1,8,32")
    inputs = find_inputs(own.inputs)
    for given in inputs:
        if given.kind != "image":
            raise ConfigError(f"{given.name} is no image; --benchmark takes images alone")

    from rich.console import Console

    from ssd_jax.checkpoints.reader import find_checkpoint
    from ssd_jax.inference.latency import benchmark, print_benchmark
    from ssd_jax.io import atomic_write

    console = Console(highlight=False, soft_wrap=True)
    checkpoint = find_checkpoint(own.checkpoint, best=own.best)
    figures = benchmark(checkpoint, [int(size) for size in sizes], [i.name for i in inputs])
    print_benchmark(figures, console)
    try:
        own.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps(figures, indent=2) + "\n"
        atomic_write(own.out / "benchmark.json", content.encode())
    except OSError as error:
        raise ConfigError(f"--out: {error}") from None
    console.print(f"benchmark.json is in {own.out}", markup=False)


def find_inputs(given: Sequence[str]) -> list[Input]:
    """The images, videos and cameras that the arguments mean, each file once.

    An argument is a file, a folder (its own images and videos, not those of folders in it), a
    pattern with * ? [ or **, or the number of a camera. What is called like an image or a video
    counts as one, also where it is none that can be read: it is reported later. Raises
    ConfigError for an argument that gives nothing.
    """
    found: dict[str, tuple[Path, str]] = {}  # by what it is, so that nothing is there twice
    for text in given:
        path = Path(text).expanduser()
        if not exists(path) and text.isdecimal():
            found[text] = path, "camera"
            continue
        if is_dir(path):
            try:
                files = [p for p in sorted(path.iterdir()) if _is_known(p)]
            except OSError as error:
                raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
            missing = f"{path} has no images or videos of its own; for folders in it: '{path}/**'"
        elif exists(path):
            files, missing = [path], ""
        elif glob.has_magic(text):
            matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207  # Path's has no base
            files = [p for p in sorted(map(Path, matches)) if _is_known(p)]
            missing = f"no image or video is called {text}"
        else:
            files, missing = [], f"there is no file or folder {text}"
        if not files:
            raise ConfigError(missing)
        for file in files:
            kind = "video" if file.suffix.lower() in _VIDEOS else "image"
            found.setdefault(str(_resolved(file)), (file, kind))
    return _with_stems(list(found.values()))


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in (*_IMAGES, *_VIDEOS) and not path.name.startswith(".")


def _resolved(path: Path) -> Path:
    """The file that a path leads to; the path itself where its links go in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _defect(path: Path) -> str:
    """What keeps an input from being opened, if anything: it is no regular file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            where = "in a circle" if error.errno == errno.ELOOP else "to a file that does not exist"
            return f"is a link that leads {where}"
        return f"cannot be read ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is a pipe or a device"


def _with_stems(found: Sequence[tuple[Path, str]]) -> list[Input]:
    """Each with a stem of its own: the file's; if taken with its folder's name, then a number."""
    taken, inputs = set(), []
    for path, kind in found:
        stem = f"camera{path}" if kind == "camera" else path.stem
        folder = _resolved(path).parent.name
        choices = [stem, f"{folder}-{stem}"]
        choices += [f"{stem}-{k}" for k in range(2, 2 + len(found))]
        # Some file systems do not tell A from a.
        stem = next(c for c in choices if c.lower() not in taken)
        taken.add(stem.lower())
        inputs.append(Input(name=str(path), stem=stem, kind=kind))
    return inputs


def _check_outputs(inputs: Sequence[Input], out: Path) -> None:
    """Raises ConfigError if something that is going to be written is an input."""
    sources = {_resolved(Path(i.name)) for i in inputs}
    for i in inputs:
        if _resolved(_output(i, out)) in sources:
            raise ConfigError(f"--out: {_output(i, out)} is an input; name another folder")


def _output(given: Input, out: Path) -> Path:
    return out / f"{given.stem}{'.jpg' if given.kind == 'image' else '.mp4'}"


def detect_images(
    detector: "Detector",
    inputs: Sequence[Input],
    out: Path,
    wanted: frozenset[int],
    results: Results,
    progress: "Progress",
    *,
    xml: bool,
) -> None:
    """Detect and draw image files; those that cannot be read are told and left out."""
    from ssd_jax.data.errors import DataError
    from ssd_jax.inference.detector import read_image
    from ssd_jax.inference.drawing import save_image
    from ssd_jax.io import atomic_write

    if not inputs:
        return
    task = progress.add_task("images", total=len(inputs))

    def readable() -> Iterator[tuple[Input, "Image"]]:
        for given in inputs:
            try:
                if defect := _defect(Path(given.name)):
                    raise DataError(f"{given.name} {defect}")
                yield given, read_image(given.name)
            except DataError as error:
                results.fail(given.name, error.what)
                progress.advance(task)

    for batch in _batches(readable(), detector.batch_size):
        found = _detect(detector, [image for _, image in batch], wanted, results)
        for (given, image), each in zip(batch, found, strict=True):
            results.add(each, given.name)
            save_image(_output(given, out), _drawn(each, image))
            if xml:
                atomic_write(out / "xml" / f"{given.stem}.xml", voc_xml(each, given.name, image))
            progress.advance(task)


def detect_video(
    detector: "Detector",
    given: Input,
    out: Path,
    wanted: frozenset[int],
    results: Results,
    progress: "Progress",
) -> None:
    """Detect and draw the frames of a video file or, until it is interrupted, of a camera."""
    import cv2

    live = given.kind == "camera"
    defect = "" if live else _defect(Path(given.name))
    if defect:  # FFmpeg would wait for somebody to write into a pipe
        results.fail(given.name, f"{given.name} {defect}")
        return
    capture = cv2.VideoCapture(int(given.name) if live else given.name)
    if not capture.isOpened():
        results.fail(given.name, f"{'camera ' * live}{given.name} cannot be opened")
        return
    total = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    task = progress.add_task(given.stem, total=total if total > 0 and not live else None)
    frame = 0
    with (
        _VideoFile(_output(given, out), capture.get(cv2.CAP_PROP_FPS)) as video,
        # Whoever stops a camera wants what it saw.
        contextlib.suppress(KeyboardInterrupt) if live else contextlib.nullcontext(),
    ):
        for batch in _batches(_frames(capture), detector.batch_size):
            found = _detect(detector, batch, wanted, results)
            for image, each in zip(batch, found, strict=True):
                video.write(_drawn(each, image))
                results.add(each, given.name, frame)
                frame += 1
                progress.advance(task)
    capture.release()
    if frame == 0:
        results.fail(given.name, f"{'camera ' * live}{given.name} has no frame that can be decoded")


def _frames(capture: Any) -> Iterator["Image"]:
    """RGB frames; OpenCV turns those of a video that is to be shown turned."""
    import cv2

    while True:
        there, frame = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class _VideoFile:
    """An MP4 that appears under its name when it is complete, and only if it has a frame."""

    def __init__(self, path: Path, frames_per_s: float) -> None:
        self._path = path
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        known = math.isfinite(frames_per_s) and 0 < frames_per_s <= 1000
        self._frames_per_s = frames_per_s if known else _FRAMES_PER_S
        self._writer: Any = None

    def __enter__(self) -> "_VideoFile":
        return self

    def write(self, image: "Image") -> None:
        """Add a frame; the first one decides the size."""
        import cv2

        if self._writer is None:
            height, width = image.shape[:2]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._part), code, self._frames_per_s, (width, height)
            )
            if not self._writer.isOpened():
                raise OSError(f"cannot write the video {self._path}")
            self._size = width, height
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size)  # type: ignore[assignment]
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
            if kind is None:
                self._part.replace(self._path)
        self._part.unlink(missing_ok=True)


def _detect(
    detector: "Detector", images: Sequence["Image"], wanted: frozenset[int], results: Results
) -> list["Detections"]:
    """The detections of at most one batch that are of the classes wanted."""
    start = time.perf_counter()
    found = detector(list(images))
    results.seconds += time.perf_counter() - start
    return [each.select(np.isin(each.labels, list(wanted))) for each in found]


def _drawn(found: "Detections", image: "Image") -> "Image":
    """The image with its boxes; a small one is enlarged, for names to be legible."""
    short, long = sorted(image.shape[:2])
    return found.draw(image, factor=max(1.0, min(_LEGIBLE / short, 4 * _LEGIBLE / long)))


def voc_xml(found: "Detections", file_name: str, image: "Image") -> bytes:
    """The detections as an annotation of VOC's: whole pixels from 1 on, the last one included."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = Path(file_name).name
    _add_fields(root, "size", dict(zip(("height", "width", "depth"), image.shape, strict=True)))
    height, width = image.shape[:2]
    corners = found.boxes.round().astype(int).tolist()
    for (x0, y0, x1, y1), label, score in zip(corners, found.labels, found.scores, strict=True):
        fields = {"name": found.names[label], "confidence": f"{score:.5f}", "difficult": 0}
        node = _add_fields(root, "object", fields)
        # A box thinner than a pixel is given one.
        left, top = min(x0 + 1, width), min(y0 + 1, height)
        sides = {"xmin": left, "ymin": top, "xmax": max(x1, left), "ymax": max(y1, top)}
        _add_fields(node, "bndbox", sides)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


def _add_fields(
    parent: ElementTree.Element, name: str, fields: dict[str, Any]
) -> ElementTree.Element:
    node = ElementTree.SubElement(parent, name)
    for key, value in fields.items():
        ElementTree.SubElement(node, key).text = str(value)
    return node


def _json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """A JSON list with a row a line."""
    return ("[" + ",\n".join(map(json.dumps, rows)) + "]\n").encode()


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _wanted(classes: str | None, names: Sequence[str]) -> frozenset[int]:
    """Indices of the classes named, with commas between; None: all."""
    if classes is None:
        return frozenset(range(len(names)))
    chosen = [name.strip() for name in classes.split(",")]
    for name in chosen:
        if name not in names:
            from ssd_jax.data.errors import shorten

            raise ConfigError(f"--classes: {name!r} is not one of {shorten(names, 30)}")
    return frozenset(names.index(name) for name in chosen)


def _summarize(results: Results, out: Path, seconds: float, compiling: float) -> None:
    print(f"{results.images} images and frames, {len(results.rows)} detections; see {out}")
    if results.images:
        print(
            f"{results.images / seconds:.1f} a second with reading, drawing and writing, "
            f"{results.images / results.seconds:.1f} in the detector alone; "
            f"compiling took {compiling:.1f} s before"
        )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="predict.py",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="image, video, folder, pattern or camera number")
    add("--checkpoint", type=Path, metavar="DIR", help="a run's folder or one of its checkpoints")
    add("--best", action="store_true", help="of a run the best checkpoint, not the newest")
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="default: %(default)s")
    add("--score-threshold", type=float, default=0.5, metavar="X", help="default: %(default)s")
    add("--classes", metavar="A,B", help="only report these classes; default: all")
    add("--batch-size", type=int, default=8, metavar="N", help="images at once; default: 8")
    add_cache_flag(parser)
    add("--xml", action="store_true", help="also write VOC's xml/NAME.xml for each image")
    add("--benchmark", action="store_true", help="time the detector instead; inputs are images")
    add("--batch-sizes", default="1,8,32", metavar="N,N", help="to time; default: %(default)s")
    own = parser.parse_args(list(arguments))
    if own.checkpoint is None:
        raise ConfigError("--checkpoint is missing; name a run's folder, e.g. runs/quickstart")
    if not own.inputs and not own.benchmark:
        raise ConfigError("an input is missing; name images, videos or folders")
    if not 0 <= own.score_threshold <= 1:
        raise ConfigError(f"--score-threshold is {own.score_threshold}; use a number from 0 to 1")
    if own.batch_size < 1:
        raise ConfigError(f"--batch-size is {own.batch_size}; use 1 or more")
    return own


if __name__ == "__main__":
    raise SystemExit(run_main(main))
