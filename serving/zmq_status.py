"""What SHOW_CONFIG and SHOW_STATUS answer: bert-as-service's keys, as far as they mean something here."""

import platform
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import zmq

from serving.zmq_config import ZmqConfig

VERSION = "1.10.0"
"""Of bert-as-service: its client refuses any other."""
POOLINGS = {
    "none": 0, "max": 1, "mean": 2, "mean_max": 3, "cls": 4, "sep": 5, "cls_pooled": 6,
    "classification": 7, "regression": 8,
}  # fmt: skip
"""bert-as-service's numbers of its strategies."""
CLIENTS = 500
"""Clients that are remembered one by one."""
SIZES = 1000
"""Sizes of requests that are told apart."""
INTERVALS = 200
ACTIVE = 180.0
"""Seconds after its last request for which a client counts as active."""


class Statistic:
    """Counts requests as bert-as-service does (its `ServerStatistic`), in bounded memory."""

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # requests, time of the last with texts
        self._evicted: deque[int] = deque(maxlen=CLIENTS)
        self._gone = 0
        self._sizes: OrderedDict[int, int] = OrderedDict()
        self._commands = self._requests = self._texts = 0
        self._last = time.monotonic()
        self._intervals: deque[float] = deque(maxlen=INTERVALS)

    def command(self, identity: bytes) -> None:
        self._commands += 1
        count, last = self._clients.pop(identity, (0, float("-inf")))
        self._remember(identity, count + 1, last)

    def request(self, identity: bytes, texts: int) -> None:
        now = time.monotonic()
        self._requests += 1
        self._texts += texts
        self._sizes[texts] = self._sizes.pop(texts, 0) + 1
        if len(self._sizes) > SIZES:
            self._sizes.popitem(last=False)
        self._intervals.append(now - self._last)
        self._last = now
        count, _ = self._clients.pop(identity, (0, 0.0))
        self._remember(identity, count + 1, now)

    def _remember(self, identity: bytes, count: int, last: float) -> None:
        self._clients[identity] = count, last
        if len(self._clients) > CLIENTS:
            _, (requests, _) = self._clients.popitem(last=False)
            self._gone += 1
            self._evicted.append(requests)

    def told(self) -> dict[str, Any]:
        """The value of `statistic`."""
        now = time.monotonic()
        known = sum(self._sizes.values())
        mean = sum(size * count for size, count in self._sizes.items()) / known if known else 0.0
        counts = [count for count, _ in self._clients.values()]
        rates = [1 / interval for interval in self._intervals if interval > 0]
        return {
            "num_data_request": self._requests,
            "num_total_seq": self._texts,
            "num_sys_request": self._commands,
            "num_total_request": self._requests + self._commands,
            "num_total_client": self._gone + len(self._clients),
            "num_active_client": sum(now - last < ACTIVE for _, last in self._clients.values()),
            **_spread("request_per_client", [*self._evicted, *counts]),
            **_spread("size_per_request", self._sizes.keys(), mean),
            **_spread("last_two_interval", self._intervals),
            **_spread("request_per_second", rates),
        }


def _spread(name: str, values: Collection[float], mean: float | None = None) -> dict[str, float]:
    if not values:
        return {}
    least, most = min(values), max(values)
    return {
        f"avg_{name}": sum(values) / len(values) if mean is None else mean,
        f"min_{name}": least,
        f"max_{name}": most,
        f"num_min_{name}": sum(value == least for value in values),
        f"num_max_{name}": sum(value == most for value in values),
    }


class Description:
    """What the server says of itself. `started` is when it began, `ports` are those it listens on."""

    def __init__(self, config: ZmqConfig, pooling: str, layers: Sequence[int], ports: tuple[int, int]) -> None:
        self._static = {
            "port": ports[0],
            "port_out": ports[1],
            "pooling_strategy": POOLINGS[pooling],
            # Its layers begin after the embeddings, ours with them; both count back from -1.
            "pooling_layer": [layer if layer < 0 else layer - 1 for layer in layers],
            "num_concurrent_socket": config.requests,
            "max_batch_size": config.piece,
            "fixed_embed_length": config.fixed_length,
            "show_tokens_to_client": config.pooling is None,
            "cpu": True,
            "mask_cls_sep": False,
            "no_special_token": False,
            "no_position_embeddings": False,
            "python_version": sys.version,
            "server_version": VERSION,
            "pyzmq_version": zmq.pyzmq_version(),
            "zmq_version": zmq.zmq_version(),
            "tensorflow_version": [],  # none is loaded
            "platform": platform.platform(),
            "server_start_time": str(datetime.now()),
        }

    def of(self, client: bytes, service: Any | None) -> dict[str, Any]:
        """For a client, of the `Service` that answers it now, or None where none is ready."""
        workers = len(service.workers) if service else 0
        manifest = service.manifest if service else None
        return self._static | {
            "client": client.decode("ascii", "backslashreplace"),
            "server_current_time": str(datetime.now()),
            "num_worker": workers,
            "num_process": workers + 1,
            "device_map": [-1] * workers,
            "max_seq_len": manifest.tokenizer.max_length if manifest else None,
            "do_lower_case": manifest.tokenizer.lowercase if manifest else None,
            "model_dir": f"{manifest.name} {manifest.version}" if manifest else None,
        }
