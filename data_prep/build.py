"""Raw data -> shards and manifest.json, in parallel and streamed: `python -m data_prep.build task=imdb`.

Three steps, each safe to interrupt: spool the source's rows once as lines on disk; plan parts and shuffled shards over
line offsets; let joblib workers write one shard at a time. Memory holds offsets and a chunk of texts a worker, never
the corpus.
"""

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.progress import track

from bert_mtl.config import PARTS, PrepareConfig, SourceConfig, TaskConfig, VocabConfig
from bert_mtl.records import (
    FORMAT,
    SUFFIX,
    Manifest,
    PartManifest,
    Shard,
    check_shards,
    load_manifest,
    locked,
    sha256,
)
from bert_mtl.tasks import DataError
from bert_mtl.tokenization import Tokenizer
from bert_mtl.vocabulary import make_tokenizer
from bert_mtl.workers import run_jobs
from conf import entry
from data_prep.download import download
from data_prep.shards import ShardJob, write_shard
from data_prep.sources import part_paths, read
from data_prep.splits import split
from data_prep.spool import Spool, write_spool

log = logging.getLogger(__name__)
T = TypeVar("T")


def build(config: PrepareConfig, name: str, tokenizer: Tokenizer) -> Path:
    """The records folder of task `name`, built where it is missing or anything it depends on changed.

    Raises:
        DataError: the source, a row, the disk or an existing shard is not as it must be.
    """
    source = resolve_source(config, name)
    used = tokenizer if config.input.kind == "tfrecord" else None  # text shards are tokenised later
    data, mark = (fingerprint(config, name, source, part_of_it) for part_of_it in (None, used))
    kind = "tfrecord" if used else "text"
    folder = Path(config.cache_dir) / "records" / f"{name}-{config.data.source}-{kind}-{mark[:12]}"
    with locked(folder), _swept(folder):
        if config.data.rebuild:
            shutil.rmtree(folder, ignore_errors=True)
        if (folder / "manifest.json").exists():
            check_shards(folder, load_manifest(folder))
        else:
            _build(config, name, source, (mark, data), folder, used)
    for line in describe(load_manifest(folder)):
        log.info("%s", line)
    return folder


def resolve_source(config: PrepareConfig | VocabConfig, name: str) -> SourceConfig:
    """The chosen source of a task with its path settled: data.path, the source's own, or the download's."""
    source = config.tasks[name].sources[config.data.source]  # type: ignore[index]
    path = config.data.path or source.path
    if path is None and source.url is not None:
        folder = Path(config.cache_dir) / "downloads"
        path = str(download(source.url, folder, checksum=source.sha256, size=source.bytes))
    if path is None:
        key = f"tasks.{name}.sources.{config.data.source}.path"
        raise DataError(f"{key} must be given where there is no url; got null. Set it, or data.path.")
    return source.model_copy(update={"path": path})


def fingerprint(config: PrepareConfig, name: str, source: SourceConfig, tokenizer: Tokenizer | None) -> str:
    """SHA-256 over all that decides what the records hold: format, source and its files, labels, split, tokenizer.

    Single files count by content, folders by the names, sizes and times of their files.
    """
    paths = part_paths(source)
    marks = {path: _file_mark(path) for path in set(paths.values())}
    facts = {
        "format": (FORMAT, source.format, source.columns),
        "files": {part: marks[path] for part, path in paths.items()},
        "data": config.data.model_dump(include={"source", "limit", "dev_fraction", "test_fraction", "shard_size"}),
        "heads": [(head, settings.labels) for head, settings in config.tasks[name].heads.items()],
        "seed": config.seed,
        "tokenizer": tokenizer and tokenizer.fingerprint,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _file_mark(path: Path) -> str:
    try:
        if path.is_file():
            return sha256(path)
        listing = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            status = file.lstat()
            listing.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return listing.hexdigest()
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """Leaves no temporary file behind: neither a killed build's, nor one of a worker that was stopped just now."""

    def sweep() -> None:
        for file in folder.rglob(".*.tmp"):
            file.unlink(missing_ok=True)

    sweep()
    try:
        yield
    finally:
        sweep()


def _build(
    config: PrepareConfig,
    name: str,
    source: SourceConfig,
    fingerprints: tuple[str, str],
    folder: Path,
    tokenizer: Tokenizer | None,
) -> None:
    """Writes all that a records folder lacks, its manifest (with both fingerprints) last."""
    task, work = config.tasks[name], folder / "work"
    try:
        spools = _spools(name, source, task, work)
        chosen = split({part: spool.labels for part, spool in spools.items()}, config.data, config.seed)
    except DataError:
        shutil.rmtree(folder)  # mended, the data is another source
        raise
    labels = {head: settings.labels for head, settings in task.heads.items()}
    packed = None if tokenizer is None else pickle.dumps(tokenizer)
    jobs: dict[str, list[ShardJob]] = {}
    for part in PARTS:
        origin, rows = chosen[part]
        count = -(-len(rows) // config.data.shard_size)
        jobs[part] = [
            ShardJob(
                target=folder / f"{part}-{number:05d}-of-{count:05d}{SUFFIX[config.input.kind]}",
                stats=work / f"{part}-{number:05d}-of-{count:05d}.json",
                spool=spools[origin].path,
                offsets=spools[origin].offsets[piece],
                heads={head: len(names) for head, names in labels.items()},
                max_length=config.tokenizer.max_length,
                tokenizer=packed,
            )
            for number, piece in enumerate(np.array_split(rows, count))
        ]
    missing = [(job,) for part in PARTS for job in jobs[part] if not job.done]
    examples = sum(len(job.offsets) for (job,) in missing)
    written = run_jobs(write_shard, missing, config.data, examples=examples, ordered=False)
    with _bar(written, f"{name}: writing", len(missing)) as progress:
        for _ in progress:
            pass
    parts = {part: _summary(jobs[part], labels) for part in PARTS}
    manifest = Manifest(name, config.data.source, *fingerprints, tuple(labels), "text_b" in source.columns, parts)
    manifest.save(folder)
    shutil.rmtree(work)


def _spools(name: str, source: SourceConfig, task: TaskConfig, work: Path) -> dict[str, Spool]:
    """The source's own parts, read and checked."""
    work.mkdir(parents=True, exist_ok=True)
    spools = {}
    for part in part_paths(source):
        if part in PARTS:
            with _bar(read(source, part, task), f"{name}: reading {part}") as rows:
                spools[part] = write_spool(work / f"{part}.jsonl", rows, task)
    return spools


@contextmanager
def _bar(steps: Iterator[T], title: str, total: int | None = None) -> Iterator[Iterator[T]]:
    """The steps under a progress bar, which has a thread of its own: it ends with the block, whatever happens there."""
    tracked: Any = track(steps, title, total=total)
    try:
        yield tracked
    finally:
        tracked.close()


def _summary(jobs: list[ShardJob], labels: dict[str, list[str]]) -> PartManifest:
    stats = [json.loads(job.stats.read_text()) for job in jobs]
    counts = {head: np.sum([s["labels"][head] for s in stats], axis=0).tolist() for head in labels}
    return PartManifest(
        shards=tuple(Shard(**s["shard"]) for s in stats),
        labels={head: dict(zip(names, counts[head], strict=True)) for head, names in labels.items()},
        lengths=tuple(np.sum([s["lengths"] for s in stats], axis=0).astype(int).tolist()),
        truncated=sum(s["truncated"] for s in stats),
    )


def describe(manifest: Manifest) -> Iterator[str]:
    """One line a part: examples, label counts, lengths, and the share of truncated texts."""
    for name, part in manifest.parts.items():
        heads = [", ".join(f"{label} {n:,}" for label, n in counts.items()) for counts in part.labels.values()]
        line = f"{manifest.task} ({manifest.source}) {name}: {part.examples:,} examples ({'; '.join(heads)})"
        if part.lengths:
            mean = np.average(np.arange(len(part.lengths)), weights=part.lengths)
            longest = np.flatnonzero(part.lengths)[-1]
            share = part.truncated / part.examples
            line += f", {mean:.0f} tokens on average, {longest} at most, {share:.1%} of the texts truncated"
        yield line


def prepare(config: PrepareConfig) -> None:
    """Builds the records of every task of `config` and says where they are."""
    tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
    for name in config.tasks:
        print(f"records: {build(config, name, tokenizer)}")


def main() -> None:
    entry.main("prepare", PrepareConfig, prepare)


if __name__ == "__main__":
    main()
