"""Multi-task BERT text classification on TensorFlow.

    >>> import bert_mtl
    >>> bert_mtl.load("runs/imdb-20261123-061500").predict(["What a film!"])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_mtl.predict import Predictor

__all__ = ["load"]


def load(run: str) -> "Predictor":
    """The model and tokenizer of a run, ready to `predict` (TensorFlow is imported here, not with the package)."""
    from bert_mtl.predict import Predictor

    return Predictor(run)
