"""Files that appear whole or not at all, also when the disk is full or the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bert_mtl.errors import DataError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` at the end of the block.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextmanager
def replacing(path: Path, *others: type[Exception]) -> Iterator[Path]:
    """A path to write to, whose file then takes the place of `path`, or vanishes when something goes wrong.

    Raises:
        DataError: an OSError, or one of the `others`, that the block raised by writing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if not isinstance(error, (OSError, *others)):
            raise
        if isinstance(error, OSError) and error.filename not in (None, *map(str, (path, path.parent, temporary))):
            raise  # of another file, which the block reads
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} could not be written: {reason}. What was there before is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)
