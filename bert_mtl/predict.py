"""Answers of a run: `python -m bert_mtl.predict run=… text="…"`, or `bert_mtl.load(run).predict(texts)` from Python."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from bert_mtl.answers import labelled
from bert_mtl.atomic import atomic_write
from bert_mtl.commands import PredictConfig
from bert_mtl.runs import load_model, open_run
from bert_mtl.tasks import DataError
from bert_mtl.text_batches import Text, checked_texts, readings, text_batches
from conf import entry
from data_prep.sources import Row, read_texts

CHUNK = 1024  # texts held at once when a file is streamed; sorted by length inside
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

    def predict(
        self,
        texts: Sequence[str | Sequence[str]],
        texts_b: Sequence[str | Sequence[str]] | None = None,
        batch_size: int = 32,
    ) -> list[dict]:
        """One dictionary a text (or pair), by the full names of the heads: what the head's kind decodes, such as
        `{"label": name, "probabilities": {label: p}}`. Heads that learned from pairs answer pairs alone; all others
        answer pairs too, about the first text.

        Tagging heads answer `{"spans": [{"type", "start", "end", "text", "score"}]}`, in characters of the text; mask
        heads `{"masks": [[{"token", "probability"}, …], …]}`, the best tokens for each literal [MASK] in the text.
        Spans and masks that truncation cuts off are missing. A text may also be a list of its words: it then is these
        with single spaces between them.

        The encoder reads a text once for all heads. Only these take a row each of the same batches: every task where
        the encoder knows tasks, a pair beside its first text, texts with a [MASK], and, with SentencePiece, words.

        Raises:
            TypeError: one text instead of a list of texts.
            DataError: an empty text (its place is named), or pairs for a run of single texts or the other way round.
        """
        first = checked_texts("texts", texts)
        second = None if texts_b is None else checked_texts("texts_b", texts_b)
        if second is not None and len(second) != len(first):
            raise DataError(f"texts_b must hold as many texts as texts, {len(first)}; got {len(second)}.")
        ways = readings(self.run, pair=second is not None)
        if not ways:
            learned = "pairs: give texts_b" if second is None else "single texts: leave texts_b out"
            learned += " (text_b on the command line)"
            raise DataError(f"{self.run.folder} learned from {learned}.")
        heads = [head for reading in ways for head in reading.heads]
        answers = [{head.name: _nothing(head) for head in heads} for _ in first]
        for batch in text_batches(self.run.tokenizer, ways, first, second, batch_size):
            found = self.model.answer(batch, [head.name for head in heads])
            for head in heads:
                self._decode(head, found[head.name].numpy(), batch, first, answers)
        return answers

    def _decode(
        self, head: Any, found: np.ndarray, batch: dict[str, np.ndarray], texts: list[Text], answers: list[dict]
    ) -> None:
        """Writes what a head answers to the texts of a batch into `answers`."""
        items = labelled(head, found, batch, head.name)
        if head.level == "text":
            for place, answer in zip(items.index, head.decode(items.answers), strict=True):
                answers[place][head.name] = answer
        elif head.level == "token":
            for place, answer, numbers in zip(items.index, items.answers, items.labels, strict=True):
                words = [texts[place].words[number] for number in numbers]
                answers[place][head.name] = {"spans": head.spans(answer, words, texts[place].text)}
        else:
            segments = batch["segment_ids"].reshape(-1)[batch[f"place.{head.name}"]] - 1
            for place, guess in zip(batch["index"][segments], head.decode(items.answers), strict=True):
                pairs = zip(guess["ids"], guess["probabilities"], strict=True)
                best = [{"token": str(self.run.tokenizer.tokens[token]), "probability": p} for token, p in pairs]
                answers[place][head.name]["masks"].append(best)


def _nothing(head: Any) -> dict | None:
    """The answer of a head that finds nothing in a text."""
    return {"token": {"spans": []}, "mask": {"masks": []}}.get(head.level)


def predict_rows(predictor: Predictor, rows: Iterable[Row], batch_size: int) -> Iterator[dict]:
    """Answers of a stream of rows (`text` or `tokens`, and `text_b` of pairs), each after the row's own values, in
    order, `CHUNK` at a time."""
    rows = iter(rows)
    reads = {pair: bool(readings(predictor.run, pair)) for pair in (False, True)}
    while chunk := list(itertools.islice(rows, CHUNK)):
        answers: dict[int, dict] = {}
        for pair in (False, True):
            places = [place for place, row in enumerate(chunk) if ("text_b" in row.values) == pair]
            if places and not reads[pair]:
                row, fields = chunk[places[0]], "text" if pair else "text and text_b"
                raise DataError(f"{row.origin}: the run reads {fields}; got {', '.join(row.values)}.")
            values = [chunk[place].values for place in places]
            texts = [each.get("tokens", each["text"]) for each in values]
            texts_b = [each["text_b"] for each in values] if pair else None
            if places:
                answers |= dict(zip(places, predictor.predict(texts, texts_b, batch_size), strict=True))
        yield from ({**row.values, **answers[place]} for place, row in enumerate(chunk))


def predict(config: PredictConfig) -> None:
    """One text (or pair) to the terminal, or a file to a file."""
    predictor = Predictor(config.run)
    if config.text is not None:
        texts_b = None if config.text_b is None else [config.text_b]
        print(json.dumps(predictor.predict([config.text], texts_b)[0], ensure_ascii=False))
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
