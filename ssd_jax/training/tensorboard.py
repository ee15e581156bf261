"""TensorBoard's event files, written at once by who asks for it.

tensorboardX's own writer has a thread that ends without a word when the disk is full or the clock
jumps, and then lets the training wait for it for ever. Its record format is used here, not that.
"""

import os
import socket
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter


class EventFile:
    """One file of events in `folder`, which is made; TensorBoard forgets what it has after `start`.

    Every method raises OSError where it cannot write.
    """

    def __init__(self, folder: Path, *, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The name has the second of its start; the number keeps two starts in it apart.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        # Not EventsWriter: on a full disk that one stays open when it is closed.
        self._file = RecordWriter(str(folder / name))
        self._write(Event(file_version="brain.Event:2"))
        session = SessionLog(status=SessionLog.START)
        self._write(Event(step=start + 1, session_log=session))
        self._file.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers by their tags."""
        summaries = [Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        self._write(Event(step=step, summary=Summary(value=summaries)))
        self._file.flush()

    def picture(self, step: int, tag: str, encoded: bytes) -> None:
        """An image, encoded as JPEG or PNG."""
        image = Summary.Image(encoded_image_string=encoded, colorspace=3)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))
        self._file.flush()

    def close(self) -> None:
        """Write what is left, and close the file also where that fails."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
