"""Server processes: started, waited for, weighed, ended. Linux only."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class ServerProcess:
    """A command in a process group of its own, its output in a file; a context manager that ends the group."""

    def __init__(self, command: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd,
                env=os.environ | environment, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass

    def check(self) -> None:
        """Raises RuntimeError, with the last lines of its output, once the process has ended."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the server ended with {self._process.returncode}:\n{tail}")

    def memory_mb(self) -> float:
        """Proportional set size of the process and all it started."""
        return sum(map(_pss, _tree(self._process.pid))) / 1024


def _tree(pid: int) -> list[int]:
    try:
        threads = [thread / "children" for thread in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(child) for file in threads for child in file.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(each for child in children for each in _tree(child))]


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
