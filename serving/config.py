"""The typed schema of `conf/serve.yaml`; defaults and explanations live there, types and bounds here."""

from typing import Annotated

from pydantic import Field, PositiveInt

from conf.entry import Schema
from serving.engines import EngineName


class HttpConfig(Schema):
    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    drain: PositiveInt


class LimitsConfig(Schema):
    texts: PositiveInt
    characters: PositiveInt
    body: PositiveInt


class BatchConfig(Schema):
    tokens: PositiveInt


class ServeConfig(Schema):
    """`python -m serving.server`."""

    bundle: str
    engine: EngineName
    threads: PositiveInt | None
    http: HttpConfig
    limits: LimitsConfig
    batch: BatchConfig
