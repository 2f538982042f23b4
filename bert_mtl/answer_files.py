"""What a run answers to each example of a part, on disk."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_mtl.answers import Answered
from bert_mtl.parts import Texts
from bert_mtl.tasks import Task


def write_answers(
    folder: Path, part: str, task: Task, texts: Texts, lengths: np.ndarray, answered: Mapping[str, Answered]
) -> None:
    """Writes them."""
