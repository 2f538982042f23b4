"""Texts in, a vocabulary out: `python -m data_prep.vocab task=imdb output=vocab/imdb.model`.

A SentencePiece model or a WordPiece `vocab.txt`, with the special tokens at ids 0 to 4.
The same texts in the same order give the same bytes.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import models, trainers

from bert_mtl.atomic import atomic_write
from bert_mtl.config import VocabConfig
from bert_mtl.tokenization import SPECIAL_TOKENS, rust_splitting
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.build import resolve_source
from data_prep.sources import read


def train_sentencepiece(
    texts: Iterable[str], model_file: str | Path, vocab_size: int, *, lowercase: bool = False
) -> None:
    """Writes a unigram model of `vocab_size` pieces whose control symbols 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].

    The model normalises by NFKC; `lowercase` makes it fold case too. Raises ConfigError for a size that the texts
    cannot fill.
    """
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=0.9995,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            max_sentence_length=2**30,  # bytes; by default a text of more than 4,192 is left out without a word
            num_threads=16,  # the sums, and so the pieces, depend on it
            minloglevel=2,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=cls,
            eos_piece=sep,
            control_symbols=[mask],
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or "There are none."
        raise ConfigError([Problem("size", f"suit the texts ({reason})", vocab_size)]) from error
    with atomic_write(Path(model_file)) as file:
        file.write(model.getvalue())


def train_wordpiece(texts: Iterable[str], vocab_file: str | Path, vocab_size: int, *, lowercase: bool = True) -> None:
    """Writes a `vocab.txt` of at most `vocab_size` tokens: the special ones, the characters, then pieces by frequency.

    Raises ConfigError for a size that the characters alone exceed.
    """
    texts = list(texts)
    # The library numbers the characters in the order of a hash map, and breaks ties by those numbers: fix them first.
    characters = sorted(_wordpieces(texts, 0, [], lowercase), key=lambda token: (token.startswith("##"), token))
    if len(SPECIAL_TOKENS) + len(characters) > vocab_size:
        rule = f"be at least {len(SPECIAL_TOKENS) + len(characters)}, one for every character"
        raise ConfigError([Problem("size", rule, vocab_size)])
    tokens = _wordpieces(texts, vocab_size, [*SPECIAL_TOKENS, *characters], lowercase)
    with atomic_write(Path(vocab_file)) as file:
        file.write("".join(f"{token}\n" for token in tokens).encode())


def _wordpieces(texts: list[str], vocab_size: int, first: list[str], lowercase: bool) -> list[str]:
    """The trained tokens in the order of their ids, which begin with `first`."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = rust_splitting(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=first, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(ids, key=ids.__getitem__)


def texts_of(config: VocabConfig) -> Iterator[str]:
    """The texts of the train parts of all tasks, in the sources' own order."""
    for name, task in config.tasks.items():
        for row in read(resolve_source(config, name), "train", task):
            yield from (row.values[field] for field in ("text", "text_b") if field in row.values)


def train_vocabulary(config: VocabConfig) -> None:
    """Trains the vocabulary of a configuration and says how to use it."""
    train = train_sentencepiece if config.kind == "sentencepiece" else train_wordpiece
    train(texts_of(config), config.output, config.size, lowercase=config.lowercase)
    print(f"vocabulary: {config.output}\nuse it with tokenizer={config.kind} tokenizer.vocab={config.output}")


def main() -> None:
    entry.main("vocab", VocabConfig, train_vocabulary)


if __name__ == "__main__":
    main()
