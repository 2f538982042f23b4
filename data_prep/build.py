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
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.progress import track

from bert_mtl.config import PARTS, DataConfig, PrepareConfig, SourceConfig, TaskConfig, VocabConfig
from bert_mtl.encoding import Columns
from bert_mtl.records import (
    FORMAT,
    SUFFIX,
    Manifest,
    PartManifest,
    Shard,
    check_shards,
    lengths_file,
    load_manifest,
    locked,
    save_lengths,
    sha256,
)
from bert_mtl.tasks import DataError, Task, make_tasks
from bert_mtl.tokenization import Tokenizer
from bert_mtl.vocabulary import make_tokenizer
from bert_mtl.workers import run_jobs
from conf import entry
from data_prep.download import fetched
from data_prep.duplicates import exclusions, keys, without
from data_prep.shards import ShardJob, write_shard
from data_prep.sources import located, part_files, read
from data_prep.splits import split
from data_prep.spool import Spool, write_spool

log = logging.getLogger(__name__)
T = TypeVar("T")


def build(config: PrepareConfig, name: str, tokenizer: Tokenizer, quiet: bool = False) -> Path:
    """The records folder of task `name`, built where it is missing or anything it depends on changed; unless `quiet`,
    the log says what it holds.

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
    for line in () if quiet else describe(folder, load_manifest(folder), make_tasks(config.tasks)[name], used):
        log.info("%s", line)
    return folder


def resolve_source(config: PrepareConfig | VocabConfig, name: str) -> SourceConfig:
    """The chosen source of a task with its path settled: data.path, the source's own, or the download's."""
    source = config.tasks[name].sources[config.data.source]  # type: ignore[index]
    if config.data.path is not None:
        return located(source, name, config.data.path)
    if source.path is None and source.url is not None:
        return fetched(source, Path(config.cache_dir) / "downloads")
    if source.path is None:
        key = f"tasks.{name}.sources.{config.data.source}.path"
        raise DataError(f"{key} must be given where there is no url; got null. Set it, or data.path.")
    return source


def excluded_parts(config: PrepareConfig, name: str) -> dict[str, tuple[TaskConfig, str, SourceConfig]]:
    """What must not stand in the task's train part (`data_prep.duplicates`): `<task>.<part>` -> task, part, source."""
    found = {}
    for task, part in exclusions(name, config.tasks):
        source = resolve_source(config, task)
        if part in part_files(source):
            found[f"{task}.{part}"] = (config.tasks[task], part, source)
    return found


def fingerprint(config: PrepareConfig, name: str, source: SourceConfig, tokenizer: Tokenizer | None) -> str:
    """SHA-256 over all that decides what the records hold: format, source and its files, labels, split, tokenizer.

    Single files count by content, folders by the names, sizes and times of their files.
    """
    excluded = [(part, _marks(other)) for _, part, other in excluded_parts(config, name).values()]
    facts = {
        "format": FORMAT,
        "source": source.model_dump(mode="json", include={"format", "member", "parts", "columns", "labels"}),
        "files": (_marks(source), excluded),
        "data": _data(config, name).model_dump(exclude={"path", "workers", "backend", "rebuild"}),
        "heads": [head.stored_as for head in make_tasks(config.tasks)[name].heads.values()],
        "tokenizer": tokenizer and tokenizer.fingerprint,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _data(config: PrepareConfig, name: str) -> DataConfig:
    """The section `data` as task `name` has it: with its own limit, if any."""
    return config.data.model_copy(update={"limit": config.tasks[name].limit or config.data.limit})


def _marks(source: SourceConfig) -> dict[str, list]:
    """Part of a source -> a mark of each of its files, which changes with their content."""
    return {
        part: [(file.part, file.member, _file_mark(file.path)) for file in files]
        for part, files in part_files(source).items()
    }


def _file_mark(path: Path) -> str:
    try:
        if path.is_file():
            return sha256(path)
        listing = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            status = file.lstat()
            if stat.S_ISDIR(status.st_mode):  # its size is the file system's affair
                continue
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
    task, work = make_tasks(config.tasks)[name], folder / "work"
    try:
        spools = _spools(source, task, work, excluded_parts(config, name))
        chosen = split({part: spool.strata for part, spool in spools.items()}, _data(config, name))
    except DataError:
        shutil.rmtree(folder)  # mended, the data is another source
        raise
    columns = Columns(task.labels, spools["train"].pair, task.separate, task.words)
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
                heads=tuple(task.heads.values()),
                columns=columns,
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
    parts = {part: _summary(folder, part, jobs[part], tokenizer) for part in PARTS}
    Manifest(name, config.data.source, *fingerprints, columns.pair, parts).save(folder)
    shutil.rmtree(work)


def _spools(source: SourceConfig, task: Task, work: Path, excluded: dict) -> dict[str, Spool]:
    """The source's own parts, read and checked; train without the rows that stand in parts `excluded`."""
    work.mkdir(parents=True, exist_ok=True)
    known = {where: keys(read(other, part, excluded_task)) for where, (excluded_task, part, other) in excluded.items()}
    spools = {}
    for part in part_files(source):
        rows = read(source, part, task.config)
        if part == "train" and known:
            rows = without(rows, known, task.name)
        with _bar(rows, f"{task.name}: reading {part}") as shown:
            spools[part] = write_spool(work / f"{part}.jsonl", shown, task)
    return spools


@contextmanager
def _bar(steps: Iterator[T], title: str, total: int | None = None) -> Iterator[Iterator[T]]:
    """The steps under a progress bar, which has a thread of its own: it ends with the block, whatever happens there."""
    tracked: Any = track(steps, title, total=total)
    try:
        yield tracked
    finally:
        tracked.close()


def _summary(folder: Path, part: str, jobs: list[ShardJob], tokenizer: Tokenizer | None) -> PartManifest:
    """What the manifest says of a part; with a tokenizer, the lengths of its examples are written beside."""
    stats = [json.loads(job.stats.read_text()) for job in jobs]
    statistics: dict[str, Counter] = {head: Counter() for head in stats[0]["statistics"]}
    for head, total in statistics.items():
        for shard in stats:
            total.update(shard["statistics"][head])
    if tokenizer is not None:
        save_lengths(folder, part, tokenizer.fingerprint, np.concatenate([s["lengths"] for s in stats]))
    return PartManifest(
        shards=tuple(Shard(**s["shard"]) for s in stats),
        statistics={head: dict(total) for head, total in statistics.items()},
        truncated=None if tokenizer is None else sum(s["truncated"] for s in stats),
    )


def describe(folder: Path, manifest: Manifest, task: Task, tokenizer: Tokenizer | None) -> Iterator[str]:
    """One line a part: examples, what its labels are, lengths, and the share of truncated texts."""
    for name, part in manifest.parts.items():
        heads = [head.describe(part.statistics[head.name]) for head in task.heads.values()]
        line = f"{manifest.task} ({manifest.source}) {name}: {part.examples:,} examples ({'; '.join(heads)})"
        if tokenizer is not None and part.truncated is not None:
            lengths = np.load(lengths_file(folder, name, tokenizer.fingerprint))
            line += f", {lengths.mean():.0f} tokens on average, {lengths.max()} at most"
            line += f", {part.truncated / part.examples:.1%} of the texts truncated"
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
