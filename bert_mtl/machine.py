"""The processor of this machine, and the commit that a folder of code is at."""

import platform
import subprocess
from pathlib import Path
from typing import Any


def git_state(folder: Path) -> dict[str, Any] | None:
    """The `commit` that is checked out where `folder` is, and whether files differ from it (`dirty`); None outside of
    a repository, or without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        tracked = git("ls-files", str(folder))  # a package within an environment is none of the repository around it
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))} if tracked else None
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name() -> str:
    """As Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
