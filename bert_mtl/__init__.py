"""Multi-task BERT text classification on TensorFlow.

>>> import bert_mtl
>>> bert_mtl.load("runs/imdb-20261123-061500").predict(["What a wonderful film!"])
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_mtl.kinds import Head, HeadSettings, register_kind
    from bert_mtl.predict import Predictor

__all__ = ["Head", "HeadSettings", "load", "register_kind"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's own chatter at import
# XLA's Triton kernels gave NaN gradients in bf16 on an H200 (docs/decisions.md); flags of the user's own win.
os.environ["XLA_FLAGS"] = f"--xla_gpu_enable_triton_gemm=false {os.environ.get('XLA_FLAGS', '')}"


def load(run: str) -> "Predictor":
    """The model and tokenizer of a run, ready to `predict` (TensorFlow is imported here, not with the package)."""
    from bert_mtl.predict import Predictor

    return Predictor(run)


def __getattr__(name: str) -> Any:
    """What kinds of one's own are made of (docs/custom_tasks.md); imported when asked for, as Keras takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bert_mtl import kinds

    return getattr(kinds, name)
