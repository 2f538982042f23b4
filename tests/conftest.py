"""Small things that many tests build on: a vocabulary, and the configuration of a command with a tiny model."""

import contextlib
import copy
import fcntl
import functools
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf import entry

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with contextlib.suppress(ImportError):  # the server's tests run without TensorFlow and its absl
    import absl.logging

    # When Hydra sets up the log, absl's handler closes its stream, unless it is the stderr of this very moment. That
    # would be pytest's.
    absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

WORDS = (
    "a an the film movie plot was is not good bad great dull fine what but and of it ok no yes one two three".split()
)

LONG = (
    "test_export.py",
    "test_multi_worker.py",
    "test_answers.py",
    "test_build.py",
    "test_multitask.py",
    "test_exits.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, so that at the end no process waits long for another."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def trees() -> Iterator[None]:
    """The files of this project's own trees stay as they are, so that a process keeps what it has composed of them."""
    read, kept = entry.Tree, functools.cache(entry.Tree)

    def tree(name: str, folder: str, sources: Sequence[str] = ()) -> entry.Tree:
        own = Path(folder).is_relative_to(entry.CONF_DIR) and not sources
        return kept(name, folder) if own else read(name, folder, sources)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "Tree", tree)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`shared(name, fill)`: the folder that `fill` fills, once for all processes of this run of the tests."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        whole = root / f"{name}.whole"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                (root / name).mkdir()
                fill(root / name)
                whole.touch()
        return root / name

    return folder


@pytest.fixture(scope="session")
def vocab_file(shared) -> Path:
    """A `vocab.txt` of special tokens, a few words, and single characters, so that every English text has ids."""
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [f"##{character}" for character in characters if character.isalnum()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *pieces, *(w for w in WORDS if len(w) > 1)]
    folder = shared("vocabulary", lambda folder: (folder / "vocab.txt").write_text("\n".join(tokens) + "\n"))
    return folder / "vocab.txt"


@pytest.fixture
def tiny_config(tmp_path, vocab_file) -> Callable:
    """`tiny_config("prepare", "input=textline", …)`: the real tree with the tiny model, all output below `tmp_path`."""

    def config(name: str, *overrides: str) -> Any:
        own = [f"tokenizer.vocab={vocab_file}", f"cache_dir={tmp_path / 'cache'}"]
        own += [f"run.dir={tmp_path / 'run'}"] if name == "train" else []
        pairs = [override.split("=", 1) for override in ("model=tiny", *own, *overrides)]
        is_group = {key: (entry.CONF_DIR / key).is_dir() for key, _ in pairs}
        values = copy.deepcopy(_composed(name, tuple("=".join(pair) for pair in pairs if is_group[pair[0]])))
        for key, value in pairs:
            if not is_group[key]:
                *path, last = key.split(".")
                functools.reduce(dict.__getitem__, path, values)[last] = yaml.safe_load(value)
        return entry.validate(values, _schema(name))

    return config


@functools.cache
def _composed(name: str, groups: tuple[str, ...]) -> dict:
    """Composing takes a third of a second, setting values nothing."""
    return entry.compose(name, groups, _schema(name)).model_dump(mode="json")


def _schema(name: str) -> type[entry.Schema]:
    from bert_mtl import commands, config

    own = f"{name.title()}Config"
    return getattr(config, own, None) or getattr(commands, own)


@pytest.fixture(autouse=True)
def log_untouched() -> Iterator[None]:
    """Takes Hydra's log handlers away again: they write to the output of the test that set them up."""
    log = logging.getLogger()
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    for handler in set(log.handlers) - set(handlers):
        log.removeHandler(handler)


def write_toy_task(folder: Path) -> None:
    """An easy task: the word good or bad decides."""
    fill = random.Random(3)
    for part, count in (("train", 96), ("dev", 32), ("test", 32)):
        rows = []
        for number in range(count):
            label = ("neg", "pos")[number % 2]
            words = fill.choices(["the", "film", "plot", "movie", "was", "a", "it"], k=fill.randint(3, 12))
            words.insert(fill.randrange(len(words)), {"neg": "bad", "pos": "good"}[label])
            rows.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="session")
def toy_options(shared, vocab_file) -> list[str]:
    """Overrides of `bert_mtl.train` for a tiny model on the toy task."""
    folder = shared("toy", write_toy_task)
    return [
        "tasks.imdb.sources.sample.format=jsonl",
        f"tasks.imdb.sources.sample.path='{folder}/{{part}}.jsonl'",
        "tasks.imdb.sources.sample.columns={text: text, imdb: label}",
        "model=tiny",
        f"tokenizer.vocab={vocab_file}",
        "tokenizer.max_length=32",
        "input.pad_to=16",
        f"cache_dir={folder}/cache",
        "optimizer.learning_rate=1e-2",
        "train.epochs=6",
        "train.batch_size=16",
        "train.report=false",  # it takes as long as the training
    ]


@pytest.fixture(scope="session")
def toy_run(shared, toy_options) -> Path:
    """The folder of a finished run on the toy task."""
    return shared("run", lambda folder: _train(folder, toy_options))


def _train(folder: Path, options: list[str]) -> None:
    from bert_mtl.config import TrainConfig
    from bert_mtl.train import train

    train(entry.compose("train", [*options, f"run.dir={folder}"], TrainConfig))


def write_multi_tasks(folder: Path) -> None:
    """Three tasks: `numbers` (tagging, head `spans`: "one two", "three"), `alike` (regression on pairs: 5 where both
    texts are good or both bad, else 0) and `words` (masked words)."""
    fill = random.Random(5)
    for part, count in (("train", 48), ("dev", 16), ("test", 16)):
        rows: dict[str, list[dict]] = {"numbers": [], "alike": [], "words": []}
        for _ in range(count):
            parts = fill.choices(["the", "film", "plot", "was", "anna", "é", "one two", "three"], k=fill.randint(2, 9))
            tokens = " ".join(parts).split()
            tags = [{"one": "B-number", "two": "I-number", "three": "B-number"}.get(token, "O") for token in tokens]
            rows["numbers"].append({"tokens": tokens, "tags": tags})
            first, second = (fill.choice(["good", "bad"]) for _ in range(2))
            pair = {"text": f"the {fill.choice(['film', 'plot'])} was {first}", "text_b": f"a {second} movie"}
            rows["alike"].append(pair | {"label": 5 * (first == second)})
            rows["words"].append({"text": f"the {fill.choice(['film', 'plot'])} was {first} and it was {second}"})
        for task, examples in rows.items():
            lines = (json.dumps(example) + "\n" for example in examples)
            (folder / f"{task}.{part}.jsonl").write_text("".join(lines))


@pytest.fixture(scope="session")
def multi_options(shared, toy_options) -> list[str]:
    """Overrides of `bert_mtl.train` for a tiny model on the toy task and those of `write_multi_tasks`."""
    folder = shared("multi", write_multi_tasks)
    heads = {
        "numbers": "{spans: {kind: tagging, labels: [number]}}",
        "alike": "{alike: {kind: regression, minimum: 0, maximum: 5}}",
        "words": "{words: {kind: mlm, weight: 4}}",
    }
    columns = {"alike": ", columns: {text_b: text_b}"}
    return toy_options + [
        f"+tasks.{task}={{heads: {head}, "
        f"sources: {{sample: {{format: jsonl, path: '{folder}/{task}.{{part}}.jsonl'{columns.get(task, '')}}}}}}}"
        for task, head in heads.items()
    ]


@pytest.fixture(scope="session")
def multi_run(shared, multi_options) -> Path:
    """The folder of a finished run on four tasks, of single texts, words, pairs and masked words."""
    options = [*multi_options, "train.epochs=12", "train.select=last", "train.report=true"]
    return shared("multi_run", lambda folder: _train(folder, options))
