"""Fetching published files: progress, resume after an interruption, checksum, nothing half-written."""

import hashlib
import logging
import os
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from bert_mtl.config import SourceConfig
from bert_mtl.records import locked, sha256
from bert_mtl.tasks import DataError
from data_prep.sources import part_names

log = logging.getLogger(__name__)
COLUMNS = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())


def fetched(source: SourceConfig, folder: Path) -> SourceConfig:
    """The source read from what its `url` gave: one file, or (where the url holds `{part}`) one for each part.

    Raises:
        DataError: as `download`.
    """

    def file(url: str, checksum: str | None) -> str:
        return str(download(url, folder, checksum=checksum, size=source.bytes))

    url, known = str(source.url), source.sha256
    if "{part}" not in url:
        return source.model_copy(update={"path": file(url, known if isinstance(known, str) else None)})
    names = [name for group in part_names(source).values() for name in group]
    checksums = known if isinstance(known, dict) else {}
    paths = {name: file(url.replace("{part}", name), checksums.get(name)) for name in names}
    return source.model_copy(update={"path": paths})


def download(
    url: str, folder: Path, *, checksum: str | None = None, size: int | None = None, timeout: float = 30
) -> Path:
    """The file behind `url`, fetched once into `folder`; an interrupted fetch goes on where it stopped (HTTP range).

    `size` in bytes is what the progress counts to where the server does not say.

    Raises:
        DataError: no connection, an HTTP error, too few bytes, a full disk, or another checksum (the file is removed).
    """
    # Two addresses may end in the same file name.
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{Path(urlsplit(url).path).name}"
    partial = target.with_name(target.name + ".part")
    with locked(target):
        if target.exists() and checksum in (None, sha256(target)):
            return target
        if checksum is None:
            log.warning("%s has no checksum in its task: what comes is taken as it is", url)
        try:
            with open(partial, "ab") as file:
                _fetch(url, file, size, timeout)
        except requests.RequestException as error:
            raise DataError(
                f"{url} could not be fetched ({error}). Run the command again to go on where it stopped, "
                "or fetch it by hand and pass data.path=<archive>."
            ) from error
        except OSError as error:
            raise DataError(f"{partial} could not be written: {error.strerror or error}.") from error
        if checksum and (found := sha256(partial)) != checksum:
            got = partial.stat().st_size
            partial.unlink()
            raise DataError(f"{url} must have SHA-256 {checksum}; got {found} ({got:,} bytes). The file was removed.")
        os.replace(partial, target)
    return target


def _fetch(url: str, file: IO[bytes], size: int | None, timeout: float) -> None:
    """Appends to `file` what is missing, or begins again where the server cannot continue."""
    have = file.tell()
    # Unpacked on the way, the bytes would be neither those of the checksum nor those of the range.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return  # complete already
            _empty(file)
            return _fetch(url, file, size, timeout)
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0
            _empty(file)
        total = have + int(answer.headers.get("Content-Length", 0)) or size
        with Progress(*COLUMNS) as progress:
            bar = progress.add_task(Path(urlsplit(url).path).name, total=total, completed=have)
            for block in answer.iter_content(1 << 20):
                file.write(block)
                progress.advance(bar, len(block))


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()
