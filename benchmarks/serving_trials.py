"""The server in bad times: overload, a killed worker, new versions, a long load; what was lost, and how it grew.

    python -m benchmarks.serving_trials bundle=<folder> imdb=<folder with neg/ and pos/> sst2=<.jsonl.gz>
        [ours="max_length=256"] [trials=peak,overload,kill,reload,soak] [clients=16] [soak=600] [overload=60]

Texts are those of `benchmarks.serving`. peak: closed loop of `clients`, 15 s. overload: three times the peak's requests
a second, whether they are answered or not. kill: kill -9 of the worker every two seconds for 20 s under the same load
as peak. reload: a new version every five seconds for 20 s. soak: the load of peak for so many seconds. Memory is the
proportional set size of all processes in MB, in the second and the last fifth of the time.
The result is benchmarks/results/serving_trials.json.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.machine import save
from benchmarks.processes import ServerProcess
from benchmarks.serving import ROOT, read
from serving.load import Sample, Send, closed_loop, figures, open_loop

OWN = {"bundle": "", "imdb": "", "sst2": "", "ours": "max_length=256", "trials": "peak,overload,kill,reload,soak"}
OWN |= {"clients": "16", "soak": "600", "overload": "60", "result": "serving_trials", "port": "8151"}
PEAK, TROUBLE, FACTOR = 15.0, 20.0, 3.0
COUNT = 400  # texts
Trouble = Callable[[], Awaitable[None]]


class Trials:
    """A server around the versions in a folder, and its load."""

    def __init__(self, own: dict[str, str], session: aiohttp.ClientSession, server: ServerProcess, folder: Path):
        self.own, self.session, self.server, self.folder = own, session, server, folder
        self.url, self.clients = f"http://127.0.0.1:{own['port']}", int(own["clients"])
        texts, _ = read(Path(own["imdb"]), Path(own["sst2"]), COUNT)
        self.bodies = [json.dumps({"texts": [text]}).encode() for text in texts]
        self.peak_rate = 0.0

    async def send(self, number: int) -> int | str:
        body = self.bodies[number % len(self.bodies)]
        try:
            async with self.session.post(f"{self.url}/classify", data=body) as response:
                await response.read()
                return response.status
        except TimeoutError:
            return "timeout"
        except aiohttp.ClientError as error:
            return type(error).__name__

    async def stats(self) -> dict[str, Any]:
        async with self.session.get(f"{self.url}/stats") as response:
            return await response.json()

    async def ready(self) -> None:
        while True:
            self.server.check()
            try:
                async with self.session.get(f"{self.url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)

    async def peak(self) -> dict[str, Any]:
        await self._told(lambda send: closed_loop(send, self.clients, 5.0), 5.0)  # warms up
        found = await self._told(lambda send: closed_loop(send, self.clients, PEAK), PEAK)
        self.peak_rate = found["requests_per_second"]
        return found

    async def overload(self) -> dict[str, Any]:
        seconds, rate = float(self.own["overload"]), FACTOR * self.peak_rate
        found = await self._told(lambda send: open_loop(send, rate, seconds, random.Random(1)), seconds)
        return {"offered": round(rate, 1), "of_peak": round(found["requests_per_second"] / self.peak_rate, 3)} | found

    async def kill(self) -> dict[str, Any]:
        killed = 0

        async def trouble() -> None:
            nonlocal killed
            (worker,) = (await self.stats())["versions"][0]["workers"]
            if worker["state"] == "ready":
                os.kill(worker["pid"], signal.SIGKILL)
                killed += 1

        found = await self._troubled(trouble, 2.0)
        return {"killed": killed} | found

    async def reload(self) -> dict[str, Any]:
        number = 1

        async def trouble() -> None:
            nonlocal number
            number += 1
            shutil.copytree(self.folder / "1", self.folder / f".{number}")
            (self.folder / f".{number}").rename(self.folder / str(number))

        found = await self._troubled(trouble, 5.0)
        version = next(each for each in (await self.stats())["versions"] if each["state"] == "AVAILABLE")
        return {"versions": number, "answers": version["version"]} | found

    async def soak(self) -> dict[str, Any]:
        seconds = float(self.own["soak"])
        return await self._told(lambda send: closed_loop(send, self.clients, seconds), seconds)

    async def _troubled(self, trouble: Trouble, every: float) -> dict[str, Any]:
        async def make() -> None:
            for _ in range(int((TROUBLE - 1) / every)):
                await asyncio.sleep(every)
                await trouble()

        making = asyncio.create_task(make())
        found = await self._told(lambda send: closed_loop(send, self.clients, TROUBLE), TROUBLE)
        await making
        return found

    async def _told(self, load: Callable[[Send], Awaitable[list[Sample]]], seconds: float) -> dict[str, Any]:
        memory: list[float] = []

        async def weigh() -> None:
            while True:
                memory.append(self.server.memory_mb())
                await asyncio.sleep(2)

        weighing = asyncio.create_task(weigh())
        begin = time.perf_counter()
        found = figures(await load(self.send), begin, seconds)
        weighing.cancel()
        fifth = max(len(memory) // 5, 1)
        parts = (memory[fifth : 2 * fifth] or memory, memory[-fifth:])
        return {
            "seconds": seconds,
            "requests_per_second": round(found.requests_per_second, 1),
            **{f"{name}_ms": round(value, 1) for name, value in found.latency_ms.items() if value is not None},
            "refused": found.refused, "lost": found.failed + found.unanswered,
            "statuses": {str(status): count for status, count in found.statuses.items()},
            "memory_mb": [round(sum(each) / len(each)) for each in parts],
        }  # fmt: skip


async def run(own: dict[str, str], work: Path) -> dict[str, Any]:
    folder = work / "versions"
    shutil.copytree(own["bundle"], folder / "1")
    command = [sys.executable, "-m", "serving.server", f"bundle={folder}", f"http.port={own['port']}", "reload=1.0"]
    found: dict[str, Any] = {}
    connector = aiohttp.TCPConnector(limit=0)
    headers, timeout = {"content-type": "application/json"}, aiohttp.ClientTimeout(total=60)
    with ServerProcess([*command, *own["ours"].split()], work / "log", ROOT, {}) as server:
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            trials = Trials(own, session, server, folder)
            await trials.ready()
            for name in own["trials"].split(","):
                found[name] = await getattr(trials, name)()
                print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    own = OWN | dict(argument.split("=", 1) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as work:
        found = asyncio.run(run(own, Path(work)))
    save(own["result"], {"trials": found, "ours": own["ours"]}, "ai-edge-litert", "uvicorn", "fastapi")


if __name__ == "__main__":
    main()
