"""The typed schema of `conf/serve.yaml`; defaults and explanations live there, types and bounds here."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from conf.entry import Schema
from serving.engines import EngineName
from serving.pooling import Pooling

Port = Annotated[int, Field(ge=0, le=65535)]


class HttpConfig(Schema):
    host: str
    port: Port
    drain: PositiveInt
    keys: Path | None
    tls_certificate: Path | None
    tls_key: Path | None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        return self


class LimitsConfig(Schema):
    texts: PositiveInt
    characters: PositiveInt
    body: PositiveInt
    timeout: PositiveFloat


class BatchConfig(Schema):
    tokens: PositiveInt
    queue: PositiveInt


class EncodeConfig(Schema):
    pooling: Pooling
    layers: Annotated[list[int], Field(min_length=1)]


class ServeConfig(Schema):
    """`python -m serving.server`."""

    bundle: Path
    versions: PositiveInt
    reload: PositiveFloat | None
    engine: EngineName
    workers: PositiveInt | None
    threads: PositiveInt | None
    max_length: Annotated[int, Field(ge=3)] | None
    access_log: bool
    tracing: bool
    http: HttpConfig
    limits: LimitsConfig
    batch: BatchConfig
    encode: EncodeConfig
