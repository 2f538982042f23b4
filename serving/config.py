"""The typed schema of `conf/serve.yaml`; defaults and explanations live there, types and bounds here."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from conf.entry import Problem, Schema
from serving.bert_as_service.config import Port, ZmqConfig
from serving.engines import EngineName
from serving.pooling import Pooling


class HttpConfig(Schema):
    host: str
    port: Port
    drain: PositiveInt
    keys: Path | None
    tls_certificate: Path | None
    tls_key: Path | None


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


class SamplesConfig(Schema):
    dir: Path | None
    fraction: Annotated[float, Field(gt=0, le=1)]
    texts: bool
    window: Annotated[int, Field(ge=2)]
    bytes: PositiveInt
    files: PositiveInt


class GrpcConfig(Schema):
    host: str
    port: Port | None


class ServeConfig(Schema):
    """`python -m serving.server`."""

    bundle: Path
    versions: PositiveInt
    reload: PositiveFloat | None
    engine: EngineName
    workers: PositiveInt
    lanes: PositiveInt | None
    threads: PositiveInt | None
    max_length: Annotated[int, Field(ge=3)] | None
    access_log: bool
    tracing: bool
    http: HttpConfig
    limits: LimitsConfig
    batch: BatchConfig
    encode: EncodeConfig
    samples: SamplesConfig
    zmq: ZmqConfig
    grpc: GrpcConfig

    def problems(self) -> list[Problem]:
        found, http = self.zmq.faults(), self.http
        for key, other in (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")):
            if getattr(http, key) is None and getattr(http, other) is not None:
                found.append(Problem(f"http.{key}", f"be given where http.{other} is", None))
        return found
