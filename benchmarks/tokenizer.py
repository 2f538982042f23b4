"""Texts per second of the graph's WordPiece and of the Rust library's, on the same cores and with the same rows.

    python -m benchmarks.tokenizer

Reads 10,000 IMDB test reviews from the folder BERT_MTL_SHARED, else the built-in sample. The vocabulary is the
pretrained one in .cache, else one trained on the texts. The two take turns; the median of the rounds counts.
"""

import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import tensorflow as tf

from benchmarks.machine import save
from bert_mtl.tokenization import WordPieceTokenizer, rust_tokenizer
from data_prep.vocab import train_wordpiece

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("BERT_MTL_SHARED", REPOSITORY.parent / "shared" / "data"))
MAX_LENGTH, BATCH, THREADS, ROUNDS, LIMIT = 512, 250, 2, 7, 10_000

Rows = list[list[int]]


def main() -> None:
    data, texts = read_texts()
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = next(REPOSITORY.glob(".cache/**/vocab.txt"), Path(folder) / "vocab.txt")
        if not vocab_file.exists():
            train_wordpiece(texts, vocab_file, 8_000)
        vocab_size = len(vocab_file.read_text(encoding="utf-8").split("\n")) - 1
        runs = {"graph": graph_run(vocab_file, texts), "rust": rust_run(vocab_file, texts)}
    differing = sum(a != b for a, b in zip(runs["graph"]()(), runs["rust"]()(), strict=True))
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rates[name].append(len(texts) / (time.perf_counter() - start))
    medians = {name: round(median(values)) for name, values in rates.items()}
    result = {
        "texts_per_second": medians,
        "ratio": round(medians["graph"] / medians["rust"], 2),
        "rounds": {name: [round(value) for value in values] for name, values in rates.items()},
        "differing_rows": differing,
        "data": data,
        "texts": len(texts),
        "settings": {"max_length": MAX_LENGTH, "vocab_size": vocab_size, "threads": THREADS, "batch": BATCH},
    }
    save("tokenizer", result, "tensorflow", "tensorflow-text", "tokenizers")
    print(f"{len(texts)} texts ({data}), {differing} rows differ")
    print(f"graph {medians['graph']:,} texts/s, rust {medians['rust']:,} texts/s, ratio {result['ratio']}")


def read_texts() -> tuple[str, list[str]]:
    """The name of the data, and its texts."""
    archive = SHARED / "aclImdb.tar.gz"
    if not archive.exists():
        lines = [line for file in sorted(REPOSITORY.glob("data_prep/sample/imdb/*.jsonl")) for line in file.open("rb")]
        return "built-in sample, 10 times", [json.loads(line)["text"] for line in lines] * 10
    with tarfile.open(archive) as members:
        reviews = (m for m in members if m.name.startswith(("aclImdb/test/pos/", "aclImdb/test/neg/")) and m.isfile())
        return "IMDB test", [
            members.extractfile(m).read().decode() for m, _ in zip(reviews, range(LIMIT), strict=False)
        ]


def graph_run(vocab_file: Path, texts: list[str]) -> Callable[[], Callable[[], Rows]]:
    """A call that encodes the texts, batches in `THREADS` threads, and returns a way to see the rows."""
    tokenizer = WordPieceTokenizer(vocab_file, max_length=MAX_LENGTH)
    encode = tf.function(tokenizer.encode, input_signature=[tf.TensorSpec([None], tf.string)])
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]

    def run() -> Callable[[], Rows]:
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(lambda batch: encode(tf.constant(batch)), batches))
        return lambda: [row for encoded in done for row in encoded.token_ids.to_list()]

    return run


def rust_run(vocab_file: Path, texts: list[str]) -> Callable[[], Callable[[], Rows]]:
    """The same with the Rust library, which starts a thread for every core."""
    tokenizer = rust_tokenizer(vocab_file)
    tokenizer.enable_truncation(MAX_LENGTH)

    def run() -> Callable[[], Rows]:
        done = tokenizer.encode_batch_fast(texts)
        return lambda: [encoding.ids for encoding in done]

    return run


if __name__ == "__main__":
    main()
