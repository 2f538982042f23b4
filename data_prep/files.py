"""Bytes and lines of raw data: plain and gzip'd files, and the members of archives and folders, streamed.

Every failure to read says which file it was and what it means.
"""

import gzip
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, NamedTuple

from bert_mtl.tasks import DataError
from conf.errors import Problem


class File(NamedTuple):
    """What a part of a source is read from.

    Attributes:
        path: a file, an archive (zip or tar, packed or not) or a folder.
        part: what the source calls the part.
        member: the file (or, for some readers, the folder) within an archive or folder; None is `path` itself.
    """

    path: Path
    part: str
    member: str | None = None

    @property
    def name(self) -> str:
        return self.member or self.path.name

    def within(self, name: str) -> "File":
        """The file `name` of a folder."""
        return self._replace(member=name if self.member is None else f"{self.member}/{name}")

    def exists(self) -> bool:
        """Whether it is there; of an archive's members only reading tells."""
        return bool(_unpacked(self)) if self.path.is_dir() and self.member else self.path.exists()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says of every failure to read `path` what it means."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        size = path.stat().st_size
        raise DataError(f"{path} is damaged or truncated ({error}; it has {size:,} bytes). Fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def decode(data: bytes, origin: str, offset: int = 0) -> str:
    """The text of UTF-8 bytes that begin at `offset` of their file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin}: the text must be UTF-8; got byte 0x{data[error.start]:02x} at offset {offset + error.start:,} "
            "of the file. Convert it (iconv -f latin1 -t utf-8, say)."
        ) from None


def lines(file: File) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, plain or gzip'd or in an archive, a byte order mark dropped."""
    offset = 0
    for number, line in byte_lines(file):
        text = decode(line, f"{file.name}:{number}", offset)
        yield number, text.removeprefix("\ufeff") if number == 1 else text
        offset += len(line)


def byte_lines(file: File) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, whatever its encoding."""
    with reading(file.path), ExitStack() as stack:
        yield from enumerate(_opened(file, stack), 1)


def archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of a tar archive, in one pass."""
    with reading(path), _plain(path) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.isfile() and (content := archive.extractfile(member)):
                yield member.name, content.read()
        # tarfile takes a cut for the end: a gzip file is read to its own end, and a plain archive ends with zeros
        while file.read(1 << 20):
            pass
        if not isinstance(file, gzip.GzipFile):
            file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read().strip(b"\0"):
                raise EOFError("its end is missing")


def _plain(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where they are gzip's, whatever its name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def _opened(file: File, stack: ExitStack) -> IO[bytes]:
    if file.member is None:
        return stack.enter_context(_plain(file.path))
    if file.path.is_dir():
        return stack.enter_context(_plain(_unpacked(file) or file.path / file.member))
    extract: Callable[[str], IO[bytes] | None]
    if zipfile.is_zipfile(file.path):
        zipped = stack.enter_context(zipfile.ZipFile(file.path))
        names, extract = zipped.namelist(), zipped.open
    else:
        tarred = stack.enter_context(tarfile.open(file.path))
        names, extract = tarred.getnames(), tarred.extractfile
    name = next((name for name in names if name.removeprefix("./") == file.member), None)
    if name is None:
        alike = get_close_matches(file.member, names, n=5, cutoff=0)
        raise DataError(f"{file.path}: {Problem('member', 'name a file of the archive', file.member, alike)}")
    content = extract(name)
    if content is None:
        raise DataError(f"{file.path}: its member {name} must be a file; got a folder or a link.")
    return stack.enter_context(content)


def _unpacked(file: File) -> Path | None:
    """A member where an archive was unpacked to a folder, its leading folders perhaps left out."""
    steps = Path(file.member or "").parts
    places = (file.path.joinpath(*steps[depth:]) for depth in range(len(steps)))
    return next((place for place in places if place.exists()), None)
