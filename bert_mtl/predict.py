"""Answers of a run: `python -m bert_mtl.predict run=… text="…"`, or `bert_mtl.load(run).predict(texts)` from Python."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from bert_mtl.answers import by_text
from bert_mtl.config import PredictConfig
from bert_mtl.kinds import Head
from bert_mtl.records import atomic_write
from bert_mtl.runs import load_model, open_run
from bert_mtl.tasks import DataError, Task
from bert_mtl.text_batches import WORDS, masked_batches, text_batches
from conf import entry
from data_prep.sources import Row, read_texts
from spans.words import words

CHUNK = 1024  # texts held at once when a file is streamed; sorted by length inside
MASK = "[MASK]"
TEXTS_DIR = entry.CONF_DIR / "texts"  # a tree of its own, where `input` is a file and not the group of tf.data inputs


class Pass(NamedTuple):
    """One way through the encoder: the tasks that share it, and how it reads texts."""

    tasks: list[Task]
    separate: bool = False

    @property
    def heads(self) -> list[Head]:
        return [head for task in self.tasks for head in task.heads.values() if head.level != "mask"]

    @property
    def words(self) -> bool:
        return any(head.level == "token" for head in self.heads)


class Predictor:
    """A run's model and tokenizer, ready to answer.

    Example:
        >>> bert_mtl.load("runs/imdb-20261123-061500").predict(["What a wonderful film!"])
        [{'imdb': {'label': 'pos', 'probabilities': {'neg': 0.013, 'pos': 0.987}}}]
    """

    def __init__(self, run: str | Path):
        self.run = open_run(run)
        self.model = load_model(self.run)
        self.tasks = list(self.run.tasks.values())

    def predict(self, texts: Sequence[str], texts_b: Sequence[str] | None = None, batch_size: int = 32) -> list[dict]:
        """One dictionary a text, head -> its answer, such as `{"label": name, "probabilities": {label: p}}`.

        All heads that read single texts (with `texts_b`: pairs) answer, from one pass through the encoder. Pairs whose
        texts are read apart take a second one; where tasks have weights of their own in the encoder, each takes one.
        Tagging answers `{"spans": [...]}` with character offsets in the text. A masked-language head answers where the
        text holds [MASK].

        Raises:
            TypeError: one text instead of a list of texts.
            DataError: an empty text (its place is named), or pairs for a run of single texts or the other way round.
        """
        texts, texts_b = self.checked("texts", texts), texts_b and self.checked("texts_b", texts_b)
        passes = self._passes(pairs=texts_b is not None)
        masked = [] if texts_b else [head for t in self.tasks for head in t.heads.values() if head.level == "mask"]
        if not passes and not masked:
            learned = "pairs: give texts_b" if texts_b is None else "single texts: leave texts_b out"
            raise DataError(f"{self.run.folder} learned from {learned}.")
        if texts_b is not None and len(texts_b) != len(texts):
            raise DataError(f"texts_b must hold as many texts as texts, {len(texts)}; got {len(texts_b)}.")
        answers: list[dict] = [{} for _ in texts]
        for each in passes if texts else ():
            self._answer(each, texts, texts_b, batch_size, answers)
        for head in masked:
            self._fill_masks(head, texts, batch_size, answers)
        return answers

    @staticmethod
    def checked(name: str, texts: Sequence[str]) -> list[str]:
        """The texts as a list. Raises TypeError for a single one, DataError for one that is empty."""
        if isinstance(texts, str | bytes):
            raise TypeError(f"{name} must be a list of texts; got one text. Write [text].")
        for place, text in enumerate(texts := list(texts)):
            if not text.strip():
                raise DataError(f"{name}[{place}] must not be empty; got {text!r}.")
        return texts

    def _passes(self, pairs: bool) -> list[Pass]:
        """What to run for single texts, or for pairs."""
        crossed = [task for task in self.tasks if task.name in self.run.facts.pairs and not task.separate]
        apart = [task for task in self.tasks if task.separate]
        together = [crossed] if pairs else [[task for task in self.tasks if task not in crossed]]
        groups = [Pass(tasks) for tasks in together] + ([Pass(apart, separate=True)] if pairs else [])
        if self.model.encoder.config.reads_tasks:
            groups = [Pass([task], group.separate) for group in groups for task in group.tasks]
        return [group for group in groups if group.heads]

    def _answer(
        self, group: Pass, texts: list[str], texts_b: list[str] | None, batch_size: int, answers: list[dict]
    ) -> None:
        """Adds the answers of one pass's heads."""
        found = [words(text) for text in texts] if group.words else []
        read = [" ".join(word for word, _, _ in each) or "." for each in found] or texts
        options = {"words": group.words, "separate": group.separate, "task": group.tasks[0].number}
        for batch in text_batches(self.run.tokenizer, read, texts_b, batch_size, **options):
            outputs = self.model.answer(batch, [head.name for head in group.heads])
            real = np.flatnonzero(batch["index"] >= 0)
            for head in group.heads:
                values = outputs[head.name].numpy()
                if head.level == "token":
                    self._spans(head, values, batch, texts, found, answers)
                    continue
                for place, answer in zip(batch["index"][real], head.decode(values[real]), strict=True):
                    answers[place][head.name] = answer

    @staticmethod
    def _spans(head: Any, values: np.ndarray, batch: dict, texts: list[str], found: list, answers: list[dict]) -> None:
        for place in batch["index"][batch["index"] >= 0]:
            answers[place][head.name] = {"spans": []}  # of texts without a word that has a token
        by_word = by_text(values, batch[f"label.{WORDS.name}"], batch)
        for answer, numbers, place in zip(by_word.answers, by_word.labels, by_word.index, strict=True):
            spoken = [found[place][number] for number in numbers]
            answers[place][head.name] = {"spans": head.spans(answer, spoken, texts[place])}

    def _fill_masks(self, head: Head, texts: list[str], batch_size: int, answers: list[dict]) -> None:
        """What may stand at each [MASK] of the texts that hold one."""
        tokenizer = self.run.tokenizer
        places = [place for place, text in enumerate(texts) if MASK in text]
        number = next(task.number for task in self.tasks if head in task.heads.values())
        for batch in masked_batches(tokenizer, [texts[p] for p in places], MASK, batch_size, head.name, number):
            guesses = head.decode(self.model.answer(batch, [head.name])[head.name].numpy())
            segments = batch["segment_ids"].reshape(-1)[batch[f"place.{head.name}"]] - 1
            for guess, place in zip(guesses, batch["index"][segments], strict=True):
                tokens = [tokenizer.tokens[token_id] for token_id in guess["ids"]]
                shown = [
                    {"token": token, "probability": p} for token, p in zip(tokens, guess["probabilities"], strict=True)
                ]
                answers[places[place]].setdefault(head.name, {"masks": []})["masks"].append(shown)


def predict_rows(predictor: Predictor, rows: Iterable[Row], batch_size: int) -> Iterator[dict]:
    """Answers of a stream of rows (`text`, and `text_b` of pairs), in order, `CHUNK` at a time."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, CHUNK)):
        fields = set(chunk[0].values)
        for row in chunk:
            if set(row.values) != fields:
                raise DataError(
                    f"{row.origin}: every row must hold {' and '.join(sorted(fields))}, as the first; "
                    f"got {', '.join(row.values)}."
                )
        pairs = [row.values["text_b"] for row in chunk] if "text_b" in fields else None
        answers = predictor.predict([row.values["text"] for row in chunk], pairs, batch_size)
        yield from ({**row.values, **answer} for row, answer in zip(chunk, answers, strict=True))


def predict(config: PredictConfig) -> None:
    """One text to the terminal, or a file to a file."""
    predictor = Predictor(config.run)
    if config.text is not None:
        print(json.dumps(predictor.predict([config.text])[0], ensure_ascii=False))
    elif config.input is not None and config.output is not None:
        _predict_file(predictor, Path(config.input), Path(config.output), config.batch_size)


def _predict_file(predictor: Predictor, source: Path, target: Path, batch_size: int) -> None:
    with atomic_write(target) as file:
        answers = predict_rows(predictor, read_texts(source), batch_size)
        for answer in track(answers, "predicting"):
            file.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
    print(f"answers: {target}")


def main() -> None:
    entry.main("predict", PredictConfig, predict, config_dir=TEXTS_DIR)


if __name__ == "__main__":
    main()
