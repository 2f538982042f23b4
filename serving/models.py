"""The versions of a model, side by side: found in a folder, started, put in each other's place, ended.

A new version answers only once it has answered itself; until then, and where it fails, the former one goes on. One that
is no longer wanted ends when its last request has been answered: no request is lost.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from conf.errors import ConfigError, Problem
from serving.bundle import Bundle, BundleError, load_bundle
from serving.errors import EngineError, NotReady, UnknownVersion
from serving.metrics import Metrics, resident
from serving.service import Service

log = logging.getLogger(__name__)

State = Literal["LOADING", "AVAILABLE", "UNLOADING", "END"]
"""As TensorFlow Serving calls them."""
PAST = 5
"""Versions that have ended and are still told of."""


@dataclass
class Version:
    """A bundle on its way through the server."""

    folder: Path
    mark: str
    version: str
    state: State = "LOADING"
    service: Service | None = None
    error: str | None = None


@dataclass(frozen=True)
class VersionStatus:
    """What is told of a version."""

    name: str
    version: str
    state: State
    error: str | None


class Models:
    """The newest versions of the model in a folder.

    Args:
        folder: a bundle, or a folder of bundles whose names are then the versions, ordered by the numbers in them.
        count: how many of the newest are kept.
        deploy: makes the service of a bundle, not started yet, under the name of its version.
    """

    def __init__(self, folder: Path, count: int, deploy: Callable[[Bundle, str], Service], metrics: Metrics) -> None:
        self.folder, self.count, self.deploy, self.metrics = folder, count, deploy, metrics
        self.name = ""
        self._versions: list[Version] = []  # oldest first
        self._reloading = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Returns once the newest version answers. Raises `BundleError` or `EngineError` where none does."""
        if not self.folder.is_dir():
            raise BundleError(str(Problem("bundle", "be a folder that exists", self.folder)))
        if not (found := versions_in(self.folder)):
            raise BundleError(str(Problem("bundle", "hold a manifest.json, or folders that do", self.folder)))
        errors = await self._update(found)
        if not self._available():
            raise errors[0]

    async def reload(self) -> None:
        """Brings what is served in line with the folder."""
        try:
            await self._update(versions_in(self.folder))
        except OSError as error:
            log.error("the folder of the bundle could not be read: %s", error)
        except Exception:  # whatever lies there shall not end the watch
            log.exception("the folder of the bundle could not be understood")

    async def watch(self, seconds: float) -> None:
        """Reloads whenever the folder has changed, for ever."""
        while True:
            await asyncio.sleep(seconds)
            await self.reload()

    async def close(self) -> None:
        """Ends all versions, each once its requests are answered."""
        async with self._reloading:
            for version in self._versions:
                self._end(version)
        await asyncio.gather(*self._endings)

    def service(self, version: str | None = None) -> Service:
        """That version, or the newest that answers. Raises `UnknownVersion`, `NotReady`."""
        available = self._available()
        if not available:
            raise NotReady("no version of the model is served")
        if version is None:
            return available[-1]
        for each in reversed(available):
            if each.version == version:
                return each
        options = ", ".join(each.version for each in available)
        raise UnknownVersion(f"version must be one that is served; got {version}. Options: {options}")

    def status(self) -> list[VersionStatus]:
        """Of every version, the newest first; those that have ended too."""
        return [VersionStatus(self.name, v.version, v.state, v.error) for v in reversed(self._versions)]

    def stats(self) -> dict[str, Any]:
        """What `/stats` says."""
        told: dict[str, Any] = {"uptime": time.time() - self.metrics.began, "model": self.name} | self.metrics.recent()
        batchers = [service.batcher for service in self._available()]
        told["now"]["queue"] = {
            "texts": sum(each.texts for each in batchers),
            "tokens": sum(each.waiting[1] for each in batchers),
            "limit": batchers[-1].limit if batchers else 0,
        }
        return told | {"versions": [_told(version) for version in reversed(self._versions)]}

    def observe(self) -> None:
        """Notes the state of queues and workers in the metrics."""
        texts = 0
        for service in self._available():
            workers, batcher = service.workers, service.batcher
            ready, restarts = sum(each.is_ready for each in workers), sum(each.restarts for each in workers)
            memory = sum(resident(each.pid) for each in workers if each.pid)
            service.metrics.watch(batcher.texts, batcher.waiting[1], ready, restarts, memory)
            texts += batcher.texts
        self.metrics.now().queue = texts

    def _available(self) -> list[Service]:
        return [each.service for each in self._versions if each.state == "AVAILABLE" and each.service]

    async def _update(self, found: list[tuple[Path, str]]) -> list[Exception]:
        """Starts what is new, from the newest on until enough answer, and ends the rest; returns what failed."""
        async with self._reloading:
            kept: list[Version] = []
            errors: list[Exception] = []
            for folder, mark in reversed(found):
                if len(kept) == self.count:
                    break
                # One that failed is not tried again; one that was put aside for a newer one is, where that has gone.
                same = (v for v in self._versions if v.mark == mark and (v.state == "AVAILABLE" or v.error))
                version = next(same, None)
                if version is None:
                    version = Version(folder, mark, folder.name)
                    self._versions.append(version)
                    if error := await self._load(version):
                        errors.append(error)
                if version.state == "AVAILABLE":
                    kept.append(version)
            for version in self._versions:
                # What answers goes on until something else does.
                if kept and version.state == "AVAILABLE" and version not in kept:
                    self._end(version)
            order = {mark: place for place, (_, mark) in enumerate(found)}
            self._versions.sort(key=lambda v: (v.state == "AVAILABLE", order.get(v.mark, -1)))
            back = {v.mark for v in kept}
            self._versions = [v for v in self._versions if v.state != "END" or v.mark not in back]
            ended = [v for v in self._versions if v.state == "END" and v.mark not in order]
            for version in ended[:-PAST]:
                self._versions.remove(version)
            return errors

    async def _load(self, version: Version) -> Exception | None:
        """Starts a version; returns why it could not."""
        try:
            bundle = await asyncio.to_thread(load_bundle, version.folder)
            if version.folder == self.folder:
                version.version = bundle.manifest.version
            if self.name not in ("", bundle.manifest.name):
                raise BundleError(f"{version.folder} must hold the model {self.name}; got {bundle.manifest.name}")
            service = self.deploy(bundle, version.version)
            await service.start()
        except (BundleError, ConfigError, EngineError, OSError) as error:
            version.state, version.error = "END", str(error)
            if self.name:
                log.error("version %s is not served: %s", version.version, error)
            return error
        self.name = bundle.manifest.name
        version.service, version.state = service, "AVAILABLE"
        log.info("version %s is served", version.version)
        return None

    def _end(self, version: Version) -> None:
        service = version.service
        if service is None or version.state == "END":
            return

        async def end() -> None:
            await service.close()
            version.state, version.service = "END", None
            if all(each.version != version.version for each in self._available()):
                service.metrics.forget()
            log.info("version %s has ended", version.version)

        version.state = "UNLOADING"
        task = asyncio.create_task(end(), name="end of a version")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)


def versions_in(folder: Path) -> list[tuple[Path, str]]:
    """The bundles in a folder, or the one that it is, each with a mark that changes when it does; oldest first."""
    folders = [folder] if (folder / "manifest.json").exists() else sorted(folder.glob("*/"), key=_number)
    return [(each, _mark(each)) for each in folders if (each / "manifest.json").exists() and each.name[0] != "."]


def _number(folder: Path) -> list[tuple[int, str]]:
    """Orders v9 before v10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", folder.name)]


def _mark(folder: Path) -> str:
    """Of its name, the manifest's content, and size and time of the files that it names: one that was not whole when it
    was read is tried again once it is."""
    content = (folder / "manifest.json").read_bytes()
    digest = hashlib.sha256(folder.name.encode() + b"\n" + content)
    try:
        files = sorted(map(str, json.loads(content)["files"]))
    except (ValueError, KeyError, TypeError):
        files = []
    for path in files:
        try:
            stat = os.stat(folder / path)
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\n".encode())
    return digest.hexdigest()


def _told(version: Version) -> dict[str, Any]:
    told: dict[str, Any] = {"version": version.version, "state": version.state, "error": version.error}
    if (service := version.service) is None or version.state == "LOADING":
        return told | {"engine": None, "precision": None, "requests": 0, "workers": [], "heads": {}}
    opened = service.workers[0].opened
    workers = [
        {"pid": each.pid, "state": "ready" if each.is_ready else "restarting", "restarts": each.restarts}
        for each in service.workers
    ]
    heads = {
        name: {"kind": head.kind, "reads": head.reads, "task": head.task}
        for name, head in service.manifest.heads.items()
    }
    return told | {
        "engine": opened.engine, "precision": opened.precision, "requests": service.metrics.answered,
        "workers": workers, "heads": heads,
    }  # fmt: skip
