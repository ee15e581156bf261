"""Records whose images are files: annotations are known, an image is read when asked for."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ssd_jax.data.errors import DataError, reason
from ssd_jax.data.records import Annotation, Example, to_example


class Pictures:
    """A source of image files.

    Args:
        classes: names of the classes, without background.
        files: of the images.
        annotations: of the same images.
        set_aside: one line for each object that is in none of the annotations.
    """

    def __init__(
        self,
        classes: Sequence[str],
        files: Sequence[Path],
        annotations: Sequence[Annotation],
        set_aside: Sequence[str],
    ) -> None:
        self.classes = tuple(classes)
        self.set_aside = tuple(set_aside)
        self._files = files
        self._annotations = annotations

    def __len__(self) -> int:
        return len(self._annotations)

    def annotation(self, i: int) -> Annotation:
        """Objects of record i, without reading its image."""
        return self._annotations[i]

    def image(self, i: int) -> np.ndarray:
        """Image of record i: uint8 [H, W, 3], RGB, as it is stored.

        An EXIF orientation is not applied: VOC's and COCO's boxes are for the pixels as stored.

        Raises:
            DataError: the file cannot be read, or its size is not the annotation's.
        """
        file, known = self._files[i], self._annotations[i]
        image = read_picture(file)
        height, width = image.shape[:2]
        if (width, height) != (known.width, known.height):
            raise DataError(
                f"{file} has {width}x{height} pixels as stored and its annotation says "
                f"{known.width}x{known.height}; mend the size there, or, where the boxes were "
                "drawn on a turned photograph, save the image turned"
            )
        return image

    def __getitem__(self, i: int) -> Example:
        return to_example(self._annotations[i], self.image(i))


def read_picture(file: Path) -> np.ndarray:
    """uint8 [H, W, 3], RGB, of the pixels as stored; grey becomes RGB.

    Raises:
        DataError: the file cannot be read or decoded.
    """
    try:
        data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({reason(error)})") from None
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # an empty file, or a size that no image has
        image = None
    if image is None:
        raise DataError(f"{file} is not an image that can be decoded; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
