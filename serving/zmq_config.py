"""The section `zmq` of `conf/serve.yaml`; defaults and explanations live there, types and bounds here."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from conf.errors import Problem, Schema

POOLINGS = ("classification", "regression")
Port = Annotated[int, Field(ge=0, le=65535)]


class HeldConfig(Schema):
    replies: PositiveInt
    bytes: PositiveInt
    seconds: PositiveFloat


class ZmqConfig(Schema):
    host: str
    port: Port | None
    port_out: Port | None
    pooling: Literal["classification", "regression"] | None
    head: str | None
    fixed_length: bool
    terminate: bool
    requests: PositiveInt
    piece: PositiveInt
    frame: PositiveInt
    reply: PositiveInt
    held: HeldConfig

    @property
    def out(self) -> int:
        """The port that replies leave from; 0 for any free one."""
        if self.port_out is not None:
            return self.port_out
        return self.port + 1 if self.port else 0

    def faults(self) -> list[Problem]:
        """The keys that cannot work together, for `problems()` of the whole configuration."""
        found = []
        if self.port is None and self.port_out is not None:
            found.append(Problem("zmq.port", "be given where zmq.port_out is", self.port))
        if self.port and self.port == self.port_out:
            found.append(Problem("zmq.port_out", f"be another port than zmq.port, {self.port}", self.port_out))
        if self.port == 65535 and self.port_out is None:
            found.append(Problem("zmq.port_out", "be given: there is no port after zmq.port", self.port_out))
        if self.head is not None and self.pooling is None:
            found.append(Problem("zmq.pooling", "say what zmq.head is for", self.pooling, POOLINGS))
        return found
