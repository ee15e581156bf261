"""Class names without background: of published weights, and read from class files."""

from collections import Counter
from pathlib import Path

from ssd_jax.config import ConfigError, shorten
from ssd_jax.io import MAX_TEXT, read_text, reason

_VOC = """aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
person pottedplant sheep sofa train tvmonitor"""
VOC_CLASSES = tuple(_VOC.split())
"""Classes of PASCAL VOC, in alphabetical order."""

_COCO91 = """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,
-,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,-,backpack,
umbrella,-,-,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,
baseball glove,skateboard,surfboard,tennis racket,bottle,-,wine glass,cup,fork,knife,spoon,bowl,
banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
-,dining table,-,-,toilet,-,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
refrigerator,-,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"""
COCO91_CLASSES = tuple(
    f"N/A {i}" if name == "-" else name
    for i, name in enumerate(_COCO91.replace("\n", "").split(","), start=1)
)
"""Classes of COCO by category id, as in torchvision. Ten ids have no category; their rows are part
of the softmax, so they are kept, as N/A 12 and so on."""
COCO_CLASSES = tuple(name for name in COCO91_CLASSES if not name.startswith("N/A "))
"""The 80 classes of COCO, by category id."""


def read_class_names(path: Path, option: str) -> tuple[str, ...]:
    """Read a text file with one class name per line, ignoring empty lines.

    Args:
        path: the file; ~ is the home directory.
        option: the config field or the flag that names the file, for errors.

    Raises:
        ConfigError: the file cannot be read, is empty, or has a name twice.
    """
    path = path.expanduser()
    try:
        lines = read_text(path, MAX_TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{option} {path} cannot be read ({reason(error)}); "
            "name a text file with one class per line"
        ) from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ConfigError(f"{option} {path} is empty; write one class name per line")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ConfigError(f"{option} {path} has {shorten(repeated, 20)} twice; remove one")
    return names
