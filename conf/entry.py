"""One command line for every entry point: compose the Hydra tree, check it against the typed schema, run the job.

Hydra composes and runs; what it would report one mistake at a time, after having started, is checked here first.
"""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from conf.errors import ConfigError, Problem, S, Schema, told_alone, validate
from conf.explain import explained_keys
from conf.problem import is_chain
from conf.sweep import Sweeps, ask, continuing, run_job, watch
from conf.tree import Tree, program, quoted, resolved

__all__ = [
    "CONF_DIR",
    "ConfigError",
    "Problem",
    "Schema",
    "compose",
    "explained_keys",
    "main",
    "output_dir",
    "validate",
]

CONF_DIR = Path(__file__).resolve().parent


def main(
    config_name: str,
    schema: type[S],
    job: Callable[[S], object],
    *,
    argv: Sequence[str] | None = None,
    config_dir: Path | str = CONF_DIR,
    sweeps: Sweeps[S] | None = None,
) -> None:
    """Runs `job` with the typed configuration of the command line (`sys.argv[1:]` where `argv` is None).

    Every problem is printed before anything is written. Exit codes: 2 for the configuration; 1 for an exception with
    `user_error = True`, whose message alone is printed; 130 when interrupted. Other exceptions keep their traceback.
    With --multirun a job that fails does not end the others; the command then ends with 1.
    """
    parser = get_args_parser()
    args = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    if args.experimental_rerun:
        parser.error("--experimental-rerun is not supported")
    args.config_name = args.config_name or config_name
    args.config_path = _absolute(args.config_path or str(config_dir))
    # Hydra would print exceptions in its own words and lose them; this switch lets them through.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    with _messages_alone():
        args.overrides = [_verbatim(text, schema) for text in _positioned(args.overrides, schema.positional)]
        if args.config_dir and not Path(args.config_dir).is_dir():
            raise ConfigError([Problem("--config-dir", "be a folder", args.config_dir)])
        tree = Tree(args.config_name, args.config_path, _extra_sources(args.config_dir, args.overrides))
        if args.help:
            print(tree.help(args.overrides, schema))
            return
        run = functools.partial(_run_hydra, args, parser, _task(schema, job), args.config_path, args.config_name)
        if args.hydra_help or args.info or args.shell_completion:
            run()
            return
        given = args.overrides
        asked = ask(tree, given, schema) if args.multirun or "hydra.mode=MULTIRUN" in given else None
        args.overrides = asked.overrides if asked else tree.check_all(given, schema)
        for text in filter(is_chain, given):
            print(f"{text} became {' '.join(tree.unchained([text], schema)[0])}", file=sys.stderr)
        if asked:
            again = continuing(program(), sys.argv[1:] if argv is None else argv, asked.folder)
            watch(run, asked, sweeps or Sweeps(), lambda overrides: tree.check(overrides, schema)[0], again)
        else:
            run()


def compose(config_name: str, overrides: Sequence[str], schema: type[S], *, config_dir: Path | str = CONF_DIR) -> S:
    """Returns the typed configuration of one run; raises ConfigError with every problem of overrides and files."""
    return Tree(config_name, _absolute(str(config_dir))).check(overrides, schema)[0]


def output_dir() -> Path:
    """Returns the folder of the run in progress; within `--multirun` that of this job alone."""
    return Path(HydraConfig.get().runtime.output_dir)


def _positioned(texts: Sequence[str], key: str | None) -> list[str]:
    """The arguments, with those that stand alone as one override of the list `key`, where the schema names one: those
    without =, paths that exist, and what has a slash before its =, as keys have not. Raises ConfigError for both."""
    alone = [text for text in texts if key and (os.path.exists(text) or re.match(r"(?!hydra/)[^=]*(/|\Z)", text))]
    if not alone:
        return list(texts)
    others = [text for text in texts if text not in alone]
    if twice := [text for text in others if text.lstrip("+").startswith(f"{key}=")]:
        raise ConfigError([Problem(str(key), "be given once, as arguments or as a key", " ".join(twice + alone))])
    return [*others, f"{key}=[{','.join(map(quoted, alone))}]"]


def _verbatim(text: str, schema: type[Schema]) -> str:
    """Quotes the value of a key that the schema takes as typed."""
    key, _, value = text.partition("=")
    return f"{key}={quoted(value)}" if key in schema.verbatim else text


def _task(schema: type[S], job: Callable[[S], object]) -> Callable[[DictConfig], object]:
    @functools.wraps(job)  # Hydra names the run after the module of the job
    def task(cfg: DictConfig) -> object:
        def typed() -> object:
            container, problems = resolved(cfg)
            if problems:
                raise ConfigError(problems)
            return job(validate(container, schema))

        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return run_job(typed)
        # Hydra writes a line of its own about every exception that leaves the task, so the message is printed here.
        with _messages_alone():
            return typed()

    return task


@contextmanager
def _messages_alone() -> Iterator[None]:
    """Ends the process without a traceback where the user, not the program, made the mistake."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if not told_alone(error):
            raise
        print(error, file=sys.stderr)
        _to_log_files(str(error))
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def _to_log_files(message: str) -> None:
    """Writes an error to the job's log file alone: the terminal has it already."""
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def _absolute(folder: str) -> str:
    return folder if "://" in folder else os.path.abspath(folder)


def _extra_sources(config_dir: str | None, overrides: Sequence[str]) -> list[str]:
    """The folders of `--config-dir` and `hydra.searchpath=[...]`."""
    sources = [f"file://{_absolute(config_dir)}"] if config_dir else []
    for text in overrides:
        if text.startswith("hydra.searchpath="):
            folders: Any = OverridesParser.create().parse_override(text).value()
            sources += folders
    return sources
