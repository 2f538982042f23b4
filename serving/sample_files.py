"""Lines of bytes go in; out come files in a folder, of bounded size and number."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

PATTERN = "samples-*.jsonl"
"""Names of the files; they begin with the time, so that the order of names is that of time."""


class SampleFiles:
    """What a process writes to a folder that other processes may write to as well.

    Args:
        size: bytes from which on another file is begun.
        count: files that are kept in the folder, those of other processes among them; the oldest go first.
    """

    def __init__(self, folder: Path, size: int, count: int) -> None:
        self._folder, self._size, self._count = folder, size, count
        self._path: Path | None = None
        self._file: int | None = None

    def write(self, line: bytes) -> None:
        """Appends a line, whole or not at all. Raises `OSError` where it cannot; the next one is then tried anew."""
        try:
            file = self._opened()
            end = os.fstat(file).st_size
            written = os.write(file, line)
            if written < len(line):  # the disk is full: half a line would spoil the next one too
                os.ftruncate(file, end)
                raise OSError(f"{written} of {len(line)} bytes could be written")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
        self._file = None

    def _opened(self) -> int:
        """The file to append to: the former one, unless it is full or somebody has taken it away."""
        if self._file is not None:
            status = os.fstat(self._file)
            if status.st_size < self._size and status.st_nlink:
                return self._file
            self.close()
            self._path = None
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._path is None:
            now = time.time()
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}"
            self._path = self._folder / f"samples-{stamp}-{socket.gethostname()}-{os.getpid()}.jsonl"
            for old in sorted(self._folder.glob(PATTERN))[: -self._count + 1 or None]:
                old.unlink(missing_ok=True)
        self._file = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o640)
        return self._file
