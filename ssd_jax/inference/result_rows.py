"""Rows of result files: detections in COCO's results format."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd_jax.inference.detector import Detections


def detection_rows(
    detections: "Detections", *, image_id: int, file_name: str, frame: int | None = None
) -> list[dict[str, Any]]:
    """Convert the detections of one image to entries of COCO's results, with names added.

    Args:
        detections: boxes in pixels; classes are numbered from 0 here and from 1 in the rows.
        image_id: id of the image.
        file_name: name of the image or video.
        frame: index of the video's frame, if any.
    """
    position = {} if frame is None else {"frame": frame}
    return [
        {
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(score, 5),
            "file_name": file_name,
            **position,
            "category_name": detections.names[label],
        }
        for (x0, y0, x1, y1), score, label in zip(
            detections.boxes.tolist(),
            detections.scores.tolist(),
            detections.labels.tolist(),
            strict=True,
        )
    ]
