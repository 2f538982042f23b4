"""The tokenizer of a configuration: its vocabulary is named, comes with the pretrained weights, or is built in."""

from pathlib import Path

from bert_mtl.config import ModelConfig, TokenizerConfig
from bert_mtl.tokenization import SentencePieceTokenizer, Tokenizer, WordPieceTokenizer
from bert_mtl.weights import fetch_weights, vocab_file

BUILTIN_VOCAB = Path(__file__).parent / "vocab.txt"  # 4,000 wordpieces of the built-in reviews


def make_tokenizer(tokenizer: TokenizerConfig, model: ModelConfig, cache_dir: str) -> Tokenizer:
    """The tokenizer of a configuration; fetches the pretrained weights where the vocabulary stands beside them."""
    if tokenizer.vocab is not None:
        vocab = Path(tokenizer.vocab)
    elif model.weights is not None:
        vocab = vocab_file(fetch_weights(model.weights, sha256=model.sha256, cache_dir=Path(cache_dir)))
    else:
        vocab = BUILTIN_VOCAB
    length, truncation = tokenizer.max_length, tokenizer.truncation
    if tokenizer.kind == "sentencepiece":
        return SentencePieceTokenizer(vocab, max_length=length, truncation=truncation)
    return WordPieceTokenizer(vocab, lowercase=tokenizer.lowercase, max_length=length, truncation=truncation)
