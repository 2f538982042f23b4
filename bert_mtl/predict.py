"""Answers of a run: `python -m bert_mtl.predict run=… text="…"`, or `bert_mtl.load(run).predict(texts)` from Python."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from bert_mtl.config import PredictConfig
from bert_mtl.input_pipeline import text_batches
from bert_mtl.multitask import model_inputs
from bert_mtl.records import atomic_write
from bert_mtl.runs import load_model, open_run
from bert_mtl.tasks import DataError, decode
from conf import entry
from data_prep.sources import Row, read_texts

CHUNK = 1024  # texts held at once when a file is streamed; sorted by length inside
PAD_TO = 32
TEXTS_DIR = entry.CONF_DIR / "texts"  # a tree of its own, where `input` is a file and not the group of tf.data inputs


class Predictor:
    """A run's model and tokenizer, ready to answer.

    Example:
        >>> bert_mtl.load("runs/imdb-20261123-061500").predict(["What a wonderful film!"])
        [{'imdb': {'label': 'pos', 'probabilities': {'neg': 0.013, 'pos': 0.987}}}]
    """

    def __init__(self, run: str | Path):
        self.run = open_run(run)
        self.model = load_model(self.run)
        self.heads = {name: head for task in self.run.config.tasks.values() for name, head in task.heads.items()}

    def predict(self, texts: Sequence[str], texts_b: Sequence[str] | None = None, batch_size: int = 32) -> list[dict]:
        """One dictionary a text: `{task: {"label": name, "probabilities": {label: p}}}`.

        Raises:
            TypeError: one text instead of a list of texts.
            DataError: an empty text (its place is named), or pairs for a run of single texts or the other way round.
        """
        texts, texts_b = self.checked("texts", texts), texts_b and self.checked("texts_b", texts_b)
        if (texts_b is not None) != self.run.facts.pair:
            learned = "pairs: give texts_b" if self.run.facts.pair else "single texts: leave texts_b out"
            raise DataError(f"{self.run.folder} learned from {learned}.")
        if texts_b is not None and len(texts_b) != len(texts):
            raise DataError(f"texts_b must hold as many texts as texts, {len(texts)}; got {len(texts_b)}.")
        if not texts:
            return []
        answers = {
            name: decode(self.heads[name], rows) for name, rows in self.logits(texts, texts_b, batch_size).items()
        }
        return [dict(zip(answers, row, strict=True)) for row in zip(*answers.values(), strict=True)]

    @staticmethod
    def checked(name: str, texts: Sequence[str]) -> list[str]:
        """The texts as a list. Raises TypeError for a single one, DataError for one that is empty."""
        if isinstance(texts, str | bytes):
            raise TypeError(f"{name} must be a list of texts; got one text. Write [text].")
        for place, text in enumerate(texts := list(texts)):
            if not text.strip():
                raise DataError(f"{name}[{place}] must not be empty; got {text!r}.")
        return texts

    def logits(self, texts: Sequence[str], texts_b: Sequence[str] | None, batch_size: int) -> dict[str, np.ndarray]:
        """Logits by head `(texts, labels)`."""
        found = {name: np.zeros((len(texts), len(head.labels)), np.float32) for name, head in self.heads.items()}
        for batch in text_batches(self.run.tokenizer, texts, texts_b, batch_size, PAD_TO):
            real = batch["weight"] > 0
            for name, rows in self.model.answer(model_inputs(batch)).items():
                found[name][batch["index"][real]] = rows.numpy()[real]
        return found


def predict_rows(predictor: Predictor, rows: Iterable[Row], batch_size: int) -> Iterator[dict]:
    """Answers of a stream of rows (`text`, and `text_b` for a run of pairs), in order, `CHUNK` at a time."""
    rows = iter(rows)
    fields = ("text", "text_b") if predictor.run.facts.pair else ("text",)
    while chunk := list(itertools.islice(rows, CHUNK)):
        for row in chunk:
            if not set(fields) == set(row.values):
                raise DataError(f"{row.origin}: the run reads {' and '.join(fields)}; got {', '.join(row.values)}.")
        pairs = [row.values["text_b"] for row in chunk] if predictor.run.facts.pair else None
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
