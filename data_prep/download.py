"""Fetching a published archive: progress, resume after an interruption, checksum, nothing half-written."""

import os
from pathlib import Path

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from bert_mtl.records import sha256
from bert_mtl.tasks import DataError


def download(url: str, folder: Path, *, checksum: str | None = None, size: int | None = None, timeout: float = 30) -> Path:
    """The file behind `url` in `folder`, fetched once; an interrupted fetch goes on where it stopped (HTTP range).

    Raises:
        DataError: no connection, an HTTP error, too few bytes, or another checksum (the file is then removed).
    """
    target = folder / url.rstrip("/").rsplit("/", 1)[-1]
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        _fetch(url, partial, size, timeout)
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
        raise DataError(f"{url} must have SHA-256 {checksum}; got {found} ({got} bytes). The file was removed.")
    os.replace(partial, target)
    return target


def _fetch(url: str, partial: Path, size: int | None, timeout: float) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if size and have == size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if have and answer.status_code == 416:  # the server has no more: what is here is checked by its hash
            return
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        expected = have + int(answer.headers.get("Content-Length", 0)) or size
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress, open(partial, "ab" if have else "wb") as file:
            bar = progress.add_task(partial.stem, total=expected, completed=have)
            for block in answer.iter_content(1 << 20):
                file.write(block)
                progress.advance(bar, len(block))
        if expected and partial.stat().st_size < expected:
            raise requests.ConnectionError(f"{partial.stat().st_size} of {expected} bytes came")
