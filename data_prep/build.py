"""Raw data -> shards and manifest.json, in parallel and streamed: `python -m data_prep.build task=imdb`.

Three steps, each safe to interrupt: spool the source's rows once as lines on disk; plan parts and shuffled shards over line
offsets; let joblib workers write one shard at a time. Memory holds offsets and one chunk of texts a worker, never the corpus.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import joblib
import numpy as np
from rich.progress import track

from bert_mtl.config import DataConfig, PrepareConfig, SourceConfig
from bert_mtl.records import FORMAT, SUFFIX, Manifest, PartManifest, Shard, check_shards, load_manifest, sha256
from bert_mtl.tasks import DataError
from bert_mtl.tokenization import Tokenizer
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from data_prep.download import download
from data_prep.shards import ShardJob, write_shard
from data_prep.sources import part_paths, read
from data_prep.splits import split
from data_prep.spool import write_spool

log = logging.getLogger(__name__)


def build(config: PrepareConfig, name: str, tokenizer: Tokenizer) -> Path:
    """The records folder of task `name`, built where it is missing or anything it depends on changed.

    Raises:
        DataError: the source, a row, the disk or an existing shard is not as it must be.
    """
    source = resolve_source(config, name)
    kind = "tfrecord" if config.input.kind == "tfrecord" else "text"
    mark = fingerprint(config, name, source, tokenizer if kind == "tfrecord" else None)
    folder = Path(config.cache_dir) / "records" / f"{name}-{config.data.source}-{kind}-{mark[:12]}"
    with _locked(folder):
        if config.data.rebuild:
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder / "work", ignore_errors=True)
        if (folder / "manifest.json").exists():
            check_shards(folder, load_manifest(folder))
            log.info("%s: records are up to date in %s", name, folder)
        else:
            _build(config, name, source, mark, folder, tokenizer if kind == "tfrecord" else None)
    return folder


def resolve_source(config: PrepareConfig, name: str) -> SourceConfig:
    """The chosen source of a task with its path settled: data.path, the source's own, or the download's."""
    source = config.tasks[name].sources[config.data.source]  # type: ignore[index]
    path = config.data.path or source.path
    if path is None and source.url is not None:
        path = str(download(source.url, Path(config.cache_dir) / "downloads", checksum=source.sha256, size=source.bytes))
    if path is None:
        raise DataError(f"tasks.{name}.sources.{config.data.source}.path must be given where there is no url; got null.")
    return source.model_copy(update={"path": path})


def fingerprint(config: PrepareConfig, name: str, source: SourceConfig, tokenizer: Tokenizer | None) -> str:
    """SHA-256 over all that decides what the records hold: format, source and its files, labels, split, tokenizer.

    Single files count by content, folders by the names, sizes and times of their files.
    """
    files = {part: _file_mark(path) for part, path in part_paths(source).items()}
    data = config.data.model_dump(include={"source", "limit", "dev_fraction", "test_fraction", "shard_size"})
    heads = {head: settings.labels for head, settings in config.tasks[name].heads.items()}
    marks = [FORMAT, source.format, source.columns, files, data, heads, config.seed, tokenizer and tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()


def _file_mark(path: Path) -> str:
    if path.is_file():
        return sha256(path)
    listing = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        status = file.stat()
        listing.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return listing.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes that want the same records build them once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise DataError(f"{folder} could not be written: {error.strerror or error}.") from error


def _build(
    config: PrepareConfig, name: str, source: SourceConfig, mark: str, folder: Path, tokenizer: Tokenizer | None
) -> None:
    task, work = config.tasks[name], folder / "work"
    work.mkdir(exist_ok=True)
    spools = {}
    for part in part_paths(source):
        if part != "unsup":
            rows = track(read(source, part, next(iter(task.heads))), f"{name}: reading {part}")
            spools[part] = write_spool(work / f"{part}.jsonl", rows, task)
    chosen = split({part: spool.labels for part, spool in spools.items()}, config.data, config.seed)
    parts = {}
    for part in ("train", "dev", "test"):
        origin, rows = chosen[part]
        count = -(-len(rows) // config.data.shard_size)
        jobs = [
            ShardJob(
                folder / f"{part}-{number:05d}-of-{count:05d}{SUFFIX[config.input.kind]}",
                work / f"{part}-{number:05d}-of-{count:05d}.json",
                spools[origin].path,
                spools[origin].offsets[piece],
                {head: len(settings.labels) for head, settings in task.heads.items()},
                tokenizer,
            )
            for number, piece in enumerate(np.array_split(rows, count))
        ]
        run_jobs(jobs, config.data, f"{name}: writing {part}")
        parts[part] = _summary(jobs, {head: settings.labels for head, settings in task.heads.items()})
    manifest = Manifest(name, config.data.source, mark, tuple(task.heads), "text_b" in source.columns, parts)
    manifest.save(folder)
    shutil.rmtree(work)
    for line in describe(manifest):
        log.info("%s", line)


def run_jobs(jobs: list[ShardJob], data: DataConfig, title: str) -> None:
    """Writes the shards that are not done yet over joblib workers, with a progress bar."""
    missing = [job for job in jobs if not job.done]
    workers = joblib.cpu_count() if data.workers == -1 else data.workers
    with joblib.parallel_config(backend=data.backend, n_jobs=max(1, min(workers, len(missing)))):
        results = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(write_shard)(job) for job in missing)
        for _ in track(results, title, total=len(missing)):
            pass


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
        labels = "; ".join(", ".join(f"{label} {n:,}" for label, n in counts.items()) for counts in part.labels.values())
        line = f"{manifest.task} ({manifest.source}) {name}: {part.examples:,} examples ({labels})"
        if part.lengths:
            tokens = np.repeat(np.arange(len(part.lengths)), part.lengths)
            share = part.truncated / part.examples
            line += f", {tokens.mean():.0f} tokens on average, {tokens.max()} at most, {share:.1%} of the texts truncated"
        yield line


def prepare(config: PrepareConfig) -> None:
    """Builds the records of every task of `config` and says where they are."""
    tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
    for name in config.tasks:
        folder = build(config, name, tokenizer)
        print("\n".join(describe(load_manifest(folder))), f"records: {folder}", sep="\n")


def main() -> None:
    entry.main("prepare", PrepareConfig, prepare)


if __name__ == "__main__":
    main()
