"""The tokenizer of a configuration: its vocabulary is named, comes with the pretrained weights, or is built in."""

import json
from pathlib import Path

from bert_mtl.config import ModelConfig, TokenizerConfig
from bert_mtl.tokenization import SentencePieceTokenizer, Tokenizer, WordPieceTokenizer
from bert_mtl.weights import CASING, beside, fetch_weights, vocab_file
from conf.errors import ConfigError, Problem

BUILTIN_VOCAB = Path(__file__).parent / "vocab.txt"  # 4,000 wordpieces of the built-in reviews


def pretrained_folder(model: ModelConfig, cache_dir: str) -> Path | None:
    """The folder of the pretrained weights, fetched where that is needed; None for a model that starts anew."""
    if model.weights is None:
        return None
    uri, _, sha256 = model.weights.partition("#sha256=")
    return fetch_weights(uri, sha256=sha256 or None, cache_dir=Path(cache_dir))


def make_tokenizer(tokenizer: TokenizerConfig, model: ModelConfig, cache_dir: str) -> Tokenizer:
    """The tokenizer of a configuration.

    Raises:
        ConfigError: the vocabulary is not there, or not the one that the pretrained weights know.
        WeightsError: the pretrained weights cannot be fetched or come without a vocabulary.
    """
    weights = pretrained_folder(model, cache_dir)
    if weights is not None:
        vocab = _pretrained_vocab(tokenizer, weights)
    else:
        vocab = BUILTIN_VOCAB if tokenizer.vocab is None else Path(tokenizer.vocab)
    if not vocab.is_file():
        raise ConfigError([Problem("tokenizer.vocab", "be an existing file", str(vocab))])
    length, truncation = tokenizer.max_length, tokenizer.truncation
    if tokenizer.kind == "sentencepiece":
        return SentencePieceTokenizer(vocab, max_length=length, truncation=truncation)
    return WordPieceTokenizer(vocab, lowercase=tokenizer.lowercase, max_length=length, truncation=truncation)


def _pretrained_vocab(tokenizer: TokenizerConfig, weights: Path) -> Path:
    """Ids mean nothing to embeddings that learned others: the vocabulary must be the weights' own, casing included."""
    own, named = vocab_file(weights), Path(tokenizer.vocab or "")
    if tokenizer.vocab is not None and not (named.is_file() and named.read_bytes() == own.read_bytes()):
        rule = "be the vocabulary of model.weights (or choose model=tiny, or model.weights=null with model.size)"
        raise ConfigError([Problem("tokenizer.vocab", rule, tokenizer.vocab)])
    casing = beside(weights) / CASING
    lowercase = json.loads(casing.read_text()).get("do_lower_case") if casing.is_file() else None
    if lowercase is not None and lowercase != tokenizer.lowercase:
        rule = f"be {str(lowercase).lower()}, as {CASING} of model.weights says"
        raise ConfigError([Problem("tokenizer.lowercase", rule, tokenizer.lowercase)])
    return own
