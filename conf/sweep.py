"""A sweep: which jobs a command line asks for, and what each job's folder says of it (`job.json`).

Hydra launches the jobs, in this process or in others; a job that fails leaves its reason in its folder, and the others
go on.
"""

import fcntl
import itertools
import json
import logging
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple

from hydra.core.hydra_config import HydraConfig

from conf.errors import ConfigError, Problem, S, told_alone
from conf.search import OPTUNAS, search_config, space
from conf.tree import Tree, quoted

log = logging.getLogger(__name__)

JOB_FILE = "job.json"
HYDRAS_OWN = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # runs every combination
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"


class Job(NamedTuple):
    """What a job's folder says: its place in the sweep, its overrides, and how it ended."""

    folder: Path
    number: int
    overrides: tuple[str, ...]
    state: Literal["running", "finished", "failed"]  # one that was killed stays running
    error: str | None


class Sweeps(Generic[S]):
    """What an entry point does about its sweeps: nothing; the jobs of some keep more in their folders."""

    def unlike(self, folder: Path, config: S) -> list[Problem]:
        """What of an earlier job in `folder` cannot go on as this one."""
        return []

    def close(self, folder: Path) -> str:
        """What a user reads behind the last job."""
        return ""


class Asked(NamedTuple, Generic[S]):
    """A sweep whose every value has been checked.

    Attributes:
        overrides: as Hydra takes them, the folder and how many jobs run at once among them.
        configs: of all jobs in order where `every`; else, of a search, enough of them to see each value once.
    """

    folder: Path
    overrides: list[str]
    configs: list[S]
    every: bool


def ask(tree: Tree, overrides: Sequence[str], schema: type[S]) -> Asked[S]:
    """What a command line with --multirun asks for. Raises ConfigError with every problem of every job."""
    overrides, problems = tree.unchained(overrides, schema)
    hydra = tree.settings([text for text in overrides if not _is_sweep(tree, text)], schema)
    search = search_config(hydra.sweeper) if hydra.sweeper.get("_target_") == OPTUNAS else None
    every = hydra.sweeper.get("_target_") == HYDRAS_OWN
    texts = together(overrides, hydra.sweeper.get("params") or {})
    values, wrong = _columns(tree, texts, every)
    problems += wrong
    if search and not any(_is_sweep(tree, text) for text in texts):
        rule = "have something to search: key=interval(a,b), key=range(a,b) or key=a,b,c"
        problems.append(Problem("hydra/sweeper", rule, "optuna"))
    if search:
        parsed = [override for text in texts if not isinstance(override := tree.parsed(text), Problem)]
        try:
            space(parsed)
        except ConfigError as error:
            problems += error.problems
    if search and search.seeds:
        if "seed" in values:
            problems.append(Problem("seed", "be left out beside hydra.sweeper.seeds", values["seed"][0]))
        values["seed"] = [f"seed={seed}" for seed in search.seeds]
    configs, added = [], set()
    for job in jobs(values, every):
        try:
            config, new = tree.check(job, schema)
            configs.append(config)
            added |= new
        except ConfigError as error:
            problems += error.problems
    rule = "be left out of a sweep, whose jobs have numbered folders in hydra.sweep.dir"
    own = [text.partition("=")[2] for text in overrides if text.startswith("run.dir=")]
    problems += [Problem("run.dir", rule, folder) for folder in own]
    if problems:
        raise ConfigError(problems)
    folder = Path(str(hydra.sweep.dir))
    asked = [*tree.forced(overrides, added), _folder_override(folder)]
    if hydra.launcher.get("_target_") == JOBLIB:
        launched = len(configs) if every else search.launched if search else None
        import joblib

        running = joblib.effective_n_jobs(hydra.launcher.n_jobs)
        asked.append(f"hydra.launcher.n_jobs={min(running, launched or running)}")
    return Asked(folder, asked, configs, every)


def together(overrides: Sequence[str], params: Mapping[str, object]) -> list[str]:
    """The overrides of the command line and, before them, those of `hydra.sweeper.params`; a later one of a key wins,
    in the place of the first, as it does for Hydra's own sweeper."""
    texts = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    return list({text.partition("=")[0]: text for text in texts}.values())


def jobs(values: Mapping[str, Sequence[str]], every: bool) -> Iterator[list[str]]:
    """The overrides of every combination, or else enough of them to see each value once."""
    if every:
        yield from map(list, itertools.product(*values.values()))
        return
    first = [options[0] for options in values.values()]
    yield first
    for place, options in enumerate(values.values()):
        for option in options[1:]:
            yield [*first[:place], option, *first[place + 1 :]]


def _columns(tree: Tree, texts: Sequence[str], every: bool) -> tuple[dict[str, list[str]], list[Problem]]:
    """Key -> an override for each of its values (of an interval both ends), and the problems with them."""
    found: dict[str, list[str]] = {}
    problems = []
    for text in texts:
        key, override = text.partition("=")[0], tree.parsed(text)
        if isinstance(override, Problem) or not override.is_sweep_override():
            found[key] = [text]  # what is wrong with it, the check of the job says
        elif override.is_interval_sweep():
            sweep: Any = override.value()
            found[key] = [f"{key}={end!r}" for end in (sweep.start, sweep.end)]
            if every:
                rule = "have values to go through; an interval needs hydra/sweeper=optuna"
                problems.append(Problem(key, rule, override.get_value_string()))
        else:
            found[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if every and getattr(override.value(), "shuffle", False):
                rule = "keep its order: jobs go on by their numbers, and shuffle draws others each time"
                problems.append(Problem(key, rule, override.get_value_string()))
    return found, problems


def _is_sweep(tree: Tree, text: str) -> bool:
    override = tree.parsed(text)
    return not isinstance(override, Problem) and override.is_sweep_override()


def differing(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Each job's overrides without those that all jobs have; of a single one all."""
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    return [" ".join(text for text in own if text not in common) or "no overrides" for own in overrides]


def read_jobs(folder: Path) -> list[Job]:
    """The jobs that have begun in a sweep's folder, by number and folder. Raises ConfigError for a broken file."""
    found = []
    for path in folder.rglob(JOB_FILE):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            facts["overrides"] = tuple(facts["overrides"])
            found.append(Job(folder=path.parent, **facts))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError([Problem("hydra.sweep.dir", f"hold readable {JOB_FILE} files", str(path))]) from error
    return sorted(found, key=lambda job: (job.number, job.folder))


def watch(
    run: Callable[[], object],
    asked: Asked[S],
    sweeps: Sweeps[S],
    compose: Callable[[Sequence[str]], S],
    again: str,
) -> None:
    """Runs a sweep; at its end tells what it found and which jobs failed, and `again`, the command that goes on.

    Raises:
        ConfigError: its folder holds other jobs already.
        SystemExit: with 1, where a job failed.
    """
    if problems := _unlike(asked, sweeps, compose):
        raise ConfigError(problems)
    told = f"Should it stop, this goes on with it, finished jobs left alone:\n  {again}"
    print(f"sweep: {asked.folder}\n{told}\n", flush=True)  # one that is killed says nothing
    try:
        run()
    except BaseException as error:
        if not told_alone(error):
            print(f"The sweep has stopped; this goes on with it:\n  {again}", file=sys.stderr)
        raise
    if words := sweeps.close(asked.folder):
        print(words)
    found = read_jobs(asked.folder)
    if lines := _unfinished(asked, found):
        total = len(asked.configs) if asked.every else len(found)
        print(f"{len(lines)} of {total} jobs failed:", *lines, sep="\n", file=sys.stderr)
        print(f"This runs them again, and no other:\n  {again}", file=sys.stderr)
        raise SystemExit(1)


def _unfinished(asked: Asked, found: Sequence[Job]) -> list[str]:
    """A line for each job that has not finished: its folder, what it was asked, and why."""
    own = differing([job.overrides for job in found])
    lines = [
        f"  {job.folder} ({words}): {job.error or 'it has not finished'}"
        for job, words in zip(found, own, strict=True)
        if job.state != "finished"
    ]
    silent = set(range(len(asked.configs))) - {job.number for job in found} if asked.every else set()
    return lines + [f"  job {number}: it could not begin; the log says why" for number in sorted(silent)]


def continuing(program: str, argv: Sequence[str], folder: Path) -> str:
    """The command that goes on with the sweep in `folder`."""
    own = [text for text in argv if not text.startswith("hydra.sweep.dir=")]
    return f"{program} {shlex.join([*own, _folder_override(folder)])}"


def _folder_override(folder: Path) -> str:
    text = str(folder)
    return "hydra.sweep.dir=" + (text if re.fullmatch(r"[\w./-]+", text) else quoted(text))


def _unlike(asked: Asked[S], sweeps: Sweeps[S], compose: Callable[[Sequence[str]], S]) -> list[Problem]:
    """What is wrong with going on in a folder that has jobs already: they must be jobs of this very command."""
    problems = []
    for job in read_jobs(asked.folder):
        if asked.every and job.number >= len(asked.configs):
            rule = f"be the folder of this command, which has {len(asked.configs)} jobs; {job.folder} is another's"
            problems.append(Problem("hydra.sweep.dir", f"{rule} ({' '.join(job.overrides)})", str(asked.folder)))
            continue
        config = asked.configs[job.number] if asked.every else compose(job.overrides)
        problems += sweeps.unlike(job.folder, config)
    return problems


def run_job(run: Callable[[], object]) -> object:
    """What `run()` returns for Hydra's present job; NaN, which sweepers know as a failure, where it fails.

    The reason stands in the log, with the job's overrides, and in its folder.
    """
    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    facts = {"number": hydra.job.num, "overrides": overrides, "state": "running", "error": None}
    try:
        with _alone(folder):
            _write(folder, facts)
            try:
                value = run()
            except (Exception, SystemExit) as error:
                _write(folder, facts | {"state": "failed", "error": str(error) or type(error).__name__})
                raise
            _write(folder, facts | {"state": "finished"})
            return value
    except (Exception, SystemExit) as error:
        trace = None if told_alone(error) else error
        log.error("job %s (%s) failed: %s", hydra.job.num, " ".join(overrides), error, exc_info=trace)
        return math.nan


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a job's folder for this process: those that a killed launcher left behind may still be at work there."""
    with open(folder / f".{JOB_FILE}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "have no other process at work in a job's folder; wait for it, or end it"
            raise ConfigError([Problem("hydra.sweep.dir", rule, str(folder))]) from None
        yield


def _write(folder: Path, facts: Mapping[str, Any]) -> None:
    whole = folder / f".{JOB_FILE}"
    whole.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    whole.replace(folder / JOB_FILE)
