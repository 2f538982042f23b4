"""Comparison of finished runs: `python -m bert_mtl.compare runs/a runs/b runs/sweep-…`. A table, a page and its data.

Reads what runs have answered, and loads neither Keras nor TensorFlow: tables come at once.
"""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bert_mtl.atomic import atomic_write
from bert_mtl.comparison import compare_groups
from bert_mtl.groups import FinishedRun, find_runs, group_runs
from bert_mtl.pages import compare_page
from bert_mtl.tables import print_comparison
from conf import entry
from conf.errors import ConfigError, Problem, Schema

Filled = Annotated[str, Field(min_length=1)]


class CompareConfig(Schema):
    """`python -m bert_mtl.compare`. Stands here and not in `bert_mtl.commands`, which imports Keras for tasks."""

    positional: ClassVar[str | None] = "runs"

    runs: Annotated[list[Filled], Field(min_length=1)]
    part: Literal["dev", "test"]
    baseline: Filled | None
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]
    output: Filled

    def problems(self) -> list[Problem]:
        return [] if self.output.endswith(".html") else [Problem("output", "end in .html", self.output)]


def compare(config: CompareConfig) -> dict:
    """The payload of the page (`bert_mtl.comparison`), printed and written to `output` and beside it as JSON.

    Raises:
        ConfigError, DataError: runs that cannot be compared; a file that cannot be written.
    """
    runs, notes = find_runs(config.runs)
    if len(runs) < 2:
        raise ConfigError([Problem("runs", "be at least two finished runs", config.runs)])
    groups = group_runs(runs, _baseline(config.baseline, runs))
    payload = compare_groups(groups, config.part, config.resamples, config.seed, notes)
    print_comparison(payload)
    page = Path(config.output)
    for path, text in ((page.with_suffix(".json"), json.dumps(payload, indent=1)), (page, compare_page(payload))):
        with atomic_write(path) as file:
            file.write(text.encode())
    print(f"page: {page}")
    return payload


def _baseline(folder: str | None, runs: list[FinishedRun]) -> FinishedRun:
    if folder is None:
        return runs[0]
    for run in runs:
        if run.folder.resolve() == Path(folder).resolve():
            return run
    raise ConfigError([Problem("baseline", "be one of the runs", folder, [str(run.folder) for run in runs])])


def main() -> None:
    entry.main("compare", CompareConfig, compare)


if __name__ == "__main__":
    main()
