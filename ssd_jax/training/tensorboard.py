"""TensorBoard event files, written synchronously.

tensorboardX's own writer uses a thread that dies silently when the disk is full or the clock jumps,
after which the training waits for it forever. Only its record format is used here.
"""

import os
import socket
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter


class EventFile:
    """A new event file in `folder`, which is created; TensorBoard drops older events after `start`.

    Every method raises OSError if the file cannot be written.
    """

    def __init__(self, folder: Path, *, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The process number tells apart two starts within a second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        # Not tensorboardX's EventsWriter, which stays open if closing it fails on a full disk.
        self._file = RecordWriter(str(folder / name))
        self._write(Event(file_version="brain.Event:2"))
        session = SessionLog(status=SessionLog.START)
        self._write(Event(step=start + 1, session_log=session))
        self._file.flush()

    def write_scalars(self, step: int, values: dict[str, float]) -> None:
        """Write scalars by tag."""
        summaries = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        self._write(Event(step=step, summary=Summary(value=summaries)))
        self._file.flush()

    def write_image(self, step: int, tag: str, encoded: bytes) -> None:
        """Write an image, encoded as JPEG or PNG."""
        image = Summary.Image(encoded_image_string=encoded, colorspace=3)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file, which is closed even if flushing fails."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
