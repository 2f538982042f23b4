"""The arithmetic that a training step of BERT must do on its real tokens, whoever does it.

Forward and backward of a matrix product take 6 floating-point operations a weight and token (Kaplan et al. 2020). With
`N = L (4 h² + 2 h i)` weights in the products of `L` layers (hidden `h`, intermediate `i`):

    6 N tokens + 12 L h Σ length² + 6 (h² + h V) masked tokens

The second term is attention's two products, over the tokens of one example each; the third is the output of a masked
language head over `V` word pieces. Text heads, LayerNorm, softmax, GELU and the optimizer are left out, and so is all
work on padding. MFU is this, a second, over the peak of the device: benchmarks take what a large matrix product reaches
there, runs the maker's figure (`bert_mtl.meter`).
"""

from typing import NamedTuple


class Sizes(NamedTuple):
    """Of an encoder."""

    num_layers: int
    hidden_dim: int
    num_heads: int
    intermediate_dim: int
    vocab_size: int = 30_522

    @property
    def matmul_weights(self) -> int:
        """Of the layers' matrix products; no embeddings."""
        return self.num_layers * (4 * self.hidden_dim**2 + 2 * self.hidden_dim * self.intermediate_dim)


class Work(NamedTuple):
    """What some examples are: real tokens, the squares of the examples' lengths, tokens that are to be guessed."""

    tokens: int
    squares: int
    masked: int = 0


def training_flops(sizes: Sizes, work: Work) -> int:
    """Floating-point operations of forward and backward."""
    products = 6 * sizes.matmul_weights * work.tokens
    attention = 12 * sizes.num_layers * sizes.hidden_dim * work.squares
    output = 6 * (sizes.hidden_dim**2 + sizes.hidden_dim * sizes.vocab_size) * work.masked
    return products + attention + output


def mfu(sizes: Sizes, work: Work, seconds: float, peak: float) -> float:
    """The share of the device's `peak` FLOP/s that the work reached."""
    return training_flops(sizes, work) / seconds / peak
