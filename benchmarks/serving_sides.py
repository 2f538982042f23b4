"""The servers of `benchmarks.serving`: how each is started, and asked for the label of a text."""

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import aiohttp
import numpy as np

Ask = Callable[[str], Awaitable[int]]
"""From a text to the number of its label; raises where the server does not answer."""


class Asker(Protocol):
    """Clients of one server."""

    async def ask(self, text: str) -> int: ...

    async def close(self) -> None: ...


@dataclass
class Side:
    """A server: its command, with `{port}` where a free one goes (`{port_out}` a second one), what asks it, and
    whose packages (of `python`) are named with the result."""

    command: list[str]
    asker: Callable[[int, int], Asker]
    python: str
    packages: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(2))

    def arguments(self) -> list[str]:
        port, port_out = map(str, self.ports)
        return [part.replace("{port_out}", port_out).replace("{port}", port) for part in self.command]


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return found


class Http:
    """`clients` connections to one path; `body` makes the JSON of a request, `label` reads an answer."""

    def __init__(self, url: str, clients: int, body: Callable[[str], Any], label: Callable[[Any], int]) -> None:
        self._url, self._body, self._label = url, body, label
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=clients, keepalive_timeout=4),
            headers={"content-type": "application/json"}, timeout=aiohttp.ClientTimeout(total=60),
        )  # fmt: skip

    async def ask(self, text: str) -> int:
        async with self._session.post(self._url, data=json.dumps(self._body(text)).encode()) as response:
            content = await response.read()
            response.raise_for_status()
            return self._label(json.loads(content))

    async def close(self) -> None:
        await self._session.close()


class BertAsService:
    """bert-serving-client's own class, `clients` of them, each used by one thread at a time."""

    def __init__(self, port: int, port_out: int, clients: int, label: Callable[[np.ndarray], int]) -> None:
        from bert_serving.client import BertClient

        self._label, self._pool, self._free = label, ThreadPoolExecutor(clients), SimpleQueue[Any]()
        self._all = [
            BertClient(port=port, port_out=port_out, timeout=60_000, ignore_all_checks=True) for _ in range(clients)
        ]
        for client in self._all:
            self._free.put(client)

    async def ask(self, text: str) -> int:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, text)

    def _encode(self, text: str) -> int:
        client = self._free.get()
        try:
            return self._label(client.encode([text])[0])
        finally:
            self._free.put(client)

    async def close(self) -> None:
        self._pool.shutdown()
        for client in self._all:
            client.close()


def ours(bundle: Path, overrides: list[str], labels: list[str], head: str, clients: int) -> Side:
    def asker(port: int, _: int) -> Asker:
        def label(answer: Any) -> int:
            return labels.index(answer["results"][0][head]["label"])

        return Http(f"http://127.0.0.1:{port}/classify", clients, lambda text: {"texts": [text]}, label)

    command = [sys.executable, "-m", "serving.server", f"bundle={bundle.absolute()}", "http.port={port}", *overrides]
    return Side(command, asker, sys.executable, ())


def fastapi_onnx(python: str, models: Path, labels: list[str], clients: int) -> Side:
    def asker(port: int, _: int) -> Asker:
        def label(answer: Any) -> int:
            return labels.index(answer["results"][0]["label"])

        return Http(f"http://127.0.0.1:{port}/classify", clients, lambda text: {"texts": [text]}, label)

    command = [python, "-m", "benchmarks.peers.fastapi_onnx", str(models / "plain"), "{port}"]
    return Side(command, asker, python, ("fastapi", "uvicorn", "onnxruntime", "tokenizers"))


def infinity(python: str, models: Path, options: list[str], head: Callable[[np.ndarray], int], clients: int) -> Side:
    """Its `/embeddings`, as its `/classify` cuts no texts with ONNX Runtime; the head is this process' to apply.

    The vectors come with length 1: that leaves which label is likelier as it is, but for a bias near 0.
    """

    def asker(port: int, _: int) -> Asker:
        def body(text: str) -> Any:
            return {"model": "m", "input": [text]}

        url = f"http://127.0.0.1:{port}/embeddings"
        return Http(url, clients, body, lambda answer: head(np.array(answer["data"][0]["embedding"])))

    command = [
        str(Path(python).with_name("infinity_emb")), "v2", "--model-id", str(models / "hf"), "--served-model-name", "m",
        "--device", "cpu", "--host", "127.0.0.1", "--port", "{port}", "--pooling-method", "mean",
        "--log-level", "warning", *options,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    packages = ("infinity-emb", "torch", "transformers", "optimum", "onnxruntime")
    return Side(command, asker, python, packages, offline)


def bert_serving(python: str, models: Path, head: Callable[[np.ndarray], int], clients: int) -> Side:
    """Two workers on the mean of the last layer's states."""
    command = [
        str(Path(python).with_name("bert-serving-start")), "-model_dir", str(models / "tf1"), "-num_worker", "2",
        "-max_seq_len", "256", "-cpu", "-pooling_layer", "-1", "-pooling_strategy", "REDUCE_MEAN",
        "-port", "{port}", "-port_out", "{port_out}",
    ]  # fmt: skip

    def asker(port: int, port_out: int) -> Asker:
        return BertAsService(port, port_out, clients, head)

    return Side(command, asker, python, ("bert-serving-server", "tensorflow"))
