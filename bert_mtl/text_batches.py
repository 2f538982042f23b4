"""Texts to be answered in, batches (`bert_mtl.batches`) out.

What the heads of a run ask about a text can differ in how they read it; each `Reading` makes an example of the text, a
row of its own. Heads that read alike share one: mostly all of them do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from bert_mtl.batches import Layout, Window, assemble, complete, join
from bert_mtl.kinds import Head
from bert_mtl.packing import Padding
from bert_mtl.runs import Run
from bert_mtl.tasks import LINE_BREAKS, DataError, Task
from bert_mtl.tokenization import MASK, Tokenizer
from spans.tags import Word
from spans.words import words

PAD_TO = 32


@dataclass(frozen=True)
class Text:
    """A text, as it was given or as the words that were given with single spaces between them."""

    text: str
    given: list[str] | None = None

    @cached_property
    def words(self) -> list[Word]:
        """Its words with their places in `text`: those given, or those found."""
        if self.given is None:
            return words(self.text)
        ends = np.cumsum([len(word) + 1 for word in self.given]).tolist()
        return [(word, end - 1 - len(word), end - 1) for word, end in zip(self.given, ends, strict=True)]


def checked_texts(name: str, texts: Sequence[str | Sequence[str]]) -> list[Text]:
    """The texts of an argument `name`.

    Raises:
        TypeError: a single text instead of a list.
        DataError: an empty text or word (its place is named).
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a list of texts; got one text. Write [text].")
    found = []
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            if not isinstance(text, list | tuple) or not all(isinstance(word, str) for word in text):
                raise TypeError(f"{name}[{place}] must be a text or a list of words; got {text!r}.")
            given = ["".join(word.split()) for word in text]  # as data_prep takes white space out of words
            if not given or not all(given):
                raise DataError(f"{name}[{place}] must hold words that are not empty; got {list(text)!r}.")
            found.append(Text(" ".join(given), given))
        elif text.strip():
            found.append(Text(text))
        else:
            raise DataError(f"{name}[{place}] must not be empty; got {text!r}.")
        if not found[-1].text.isascii():
            _check_unicode(f"{name}[{place}]", found[-1].text)
    return found


def _check_unicode(what: str, text: str) -> None:
    """Raises DataError where `text` holds half of a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DataError(f"{what} must be Unicode text; got half of a surrogate pair, {half}.") from None


@dataclass(frozen=True)
class Reading:
    """One way to read a text (or pair).

    Attributes:
        task: its number, for encoders that read tasks.
        heads: those that read this way.
        pair: both texts of a pair, not its first one alone.
        separate: the two texts of a pair are segments of their own.
        words: word by word.
        masks: only texts that hold [MASK], which is the mask and not four letters between brackets.
    """

    task: int
    heads: tuple[Head, ...] = ()
    pair: bool = False
    separate: bool = False
    words: bool = False
    masks: bool = False


def tasks_reading(run: Run, pair: bool) -> list[Task]:
    """The tasks that read single texts, or pairs. Those whose texts are segments of their own read both, whatever they
    learned from."""
    return [task for task in run.tasks.values() if task.separate or (task.name in run.facts.pairs) == pair]


def readings(run: Run, pair: bool) -> list[Reading]:
    """How the run's tasks read single texts, or pairs; none where no task does. Of a pair, tasks that learned from
    single texts read the first one."""
    if not pair:
        return _readings(run, tasks_reading(run, pair=False), pair=False)
    paired = tasks_reading(run, pair=True)
    rest = [task for task in run.tasks.values() if task not in paired] if paired else []
    return _readings(run, paired, pair=True) + _readings(run, rest, pair=False)


def _readings(run: Run, tasks: Sequence[Task], pair: bool) -> list[Reading]:
    # The words of a text, joined by spaces, are other pieces than the text itself.
    own_words = run.tokenizer.kind == "sentencepiece"
    groups: dict[tuple, list[Task]] = {}
    for task in tasks:
        masks = any(head.level == "mask" for head in task.heads.values())
        own_task = run.facts.encoder.reads_tasks and task.number
        groups.setdefault((own_task, pair and task.separate, own_words and task.words, masks), []).append(task)
    return [
        Reading(
            task=alike[0].number,
            heads=tuple(head for task in alike for head in task.heads.values()),
            pair=pair,
            separate=separate,
            words=any(task.words for task in alike),
            masks=masks,
        )
        for (_, separate, _, masks), alike in groups.items()
    ]


def text_batches(
    tokenizer: Tokenizer,
    readings: Sequence[Reading],
    texts: Sequence[Text],
    texts_b: Sequence[Text] | None,
    batch_size: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of at most `batch_size` rows, sorted by length; `index` tells the places of their texts.

    Labels only tell what is whose: text heads have the label 0 and weight 1 at their examples, token heads the numbers
    of the words where these begin, and mask heads 0 at each [MASK].
    """
    specs = [head.label_spec(each.task) for each in readings for head in each.heads if head.level != "mask"]
    windows = [_window(tokenizer, reading, texts, texts_b) for reading in readings]
    filled = [complete(window, specs) for window in windows if window is not None]
    if not filled:
        return
    window, tasks = join(filled), max(reading.task for reading in readings) + 1
    separate = tuple(any(each.separate and each.task == task for each in readings) for task in range(tasks))
    for plan in Padding(batch_size).plan(window.lengths, len(window.task), lambda _: None):
        for batch in plan.batches:
            rows = len(batch.chosen)
            layout = Layout(rows, rows * (1 + any(separate)), tuple(specs), separate, length=None, pad_to=PAD_TO)
            arrays = assemble(window, batch, layout, np.random.default_rng(0))  # nothing is drawn
            yield arrays | _masks(tokenizer, readings, arrays)


def _window(
    tokenizer: Tokenizer, reading: Reading, texts: Sequence[Text], texts_b: Sequence[Text] | None
) -> Window | None:
    """The examples that a reading makes of texts; None where it makes none."""
    pairs = list(zip(texts, texts_b, strict=True)) if reading.pair and texts_b else [(text,) for text in texts]
    index = np.array(
        [place for place, pair in enumerate(pairs) if not reading.masks or any(MASK in text.text for text in pair)],
        np.int32,
    )
    if not len(index):
        return None
    token_labels = {}
    if reading.words:
        joined = [" ".join(word for word, _, _ in texts[place].words) for place in index]
        encoded, numbers = tokenizer.encode_words(tf.constant(joined))
        token_labels = {head.name: numbers.values.numpy() for head in reading.heads if head.level == "token"}
    else:
        first, *second = (
            tf.constant([text.text.translate(LINE_BREAKS) for text in column])
            for column in zip(*(pairs[place] for place in index), strict=True)
        )
        texts_b = second[0] if second else None
        encoded = tokenizer.encode(first, texts_b, separate=reading.separate, masks=reading.masks)
    specs = [head.label_spec(reading.task) for head in reading.heads if head.level == "text"]
    return Window(
        token_ids=encoded.token_ids.values.numpy(),
        splits=encoded.token_ids.row_splits.numpy(),
        second_start=encoded.second_start.numpy(),
        task=np.full(len(index), reading.task, np.int32),
        index=index,
        labels={spec.name: np.zeros((len(index), *spec.shape), spec.dtype) for spec in specs},
        token_labels=token_labels,
    )


def _masks(tokenizer: Tokenizer, readings: Sequence[Reading], arrays: dict) -> dict[str, np.ndarray]:
    """What the batch says of mask heads: the places of each [MASK] in their reading."""
    found = {}
    task = np.append(arrays["task"], -1)[arrays["segment_ids"] - 1]  # of every token; padding is segment 0
    for reading in (each for each in readings if each.masks):
        places = np.flatnonzero((arrays["token_ids"] == tokenizer.mask_id) & (task == reading.task)).astype(np.int32)
        for head in reading.heads:
            found[f"place.{head.name}"] = places
            found[f"label.{head.name}"] = np.zeros_like(places)
            found[f"weight.{head.name}"] = np.ones(len(places), np.float32)
    return found
