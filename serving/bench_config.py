"""The typed schema of `conf/texts/bench.yaml`; defaults and explanations live there, types and bounds here."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from conf.entry import Problem, Schema

Filled = Annotated[str, Field(min_length=1)]
KINDS = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
PICTURES = (".svg", ".png")


class BenchConfig(Schema):
    """`python -m serving.bench`."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    endpoint: Literal["classify", "encode"]
    pooling: Filled | None
    layers: Annotated[list[int], Field(min_length=1)] | None
    key: Filled | None
    input: Filled | None
    words: PositiveInt | None
    texts_per_request: PositiveInt
    clients: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)]
    rate: PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=1)] | None
    growth: NonNegativeFloat
    duration: PositiveFloat
    warmup: NonNegativeFloat
    wait: NonNegativeFloat
    timeout: PositiveFloat
    seed: int
    csv: Filled | None
    plot: Filled | None

    def problems(self) -> list[Problem]:
        found = []
        if self.input is not None and not self.input.endswith(KINDS):
            found.append(Problem("input", "end in a known kind of file", self.input, KINDS))
        if self.plot is not None and not self.plot.endswith(PICTURES):
            found.append(Problem("plot", "end in .svg or .png", self.plot))
        if self.endpoint == "classify":
            given = {"pooling": self.pooling, "layers": self.layers}
            rule = "be given with endpoint=encode only"
            found += [Problem(key, rule, value) for key, value in given.items() if value is not None]
        return found

    @property
    def loads(self) -> list[int] | list[float]:
        """The number of clients, or the rate, of each step."""
        given = self.clients if self.rate is None else self.rate
        return given if isinstance(given, list) else [given]  # type: ignore[return-value]
