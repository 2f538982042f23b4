"""The YAML files of one command as Hydra finds them, and every check of a command line against them and the schema."""

import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from conf.errors import NOTHING, ConfigError, Problem, S, Schema, dotted, exists, unknown_in_tree, validate
from conf.explain import comments, help_text
from conf.problem import is_chain, unchained

REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)  # what composing raises
MISSING = {("hydra/launcher", "joblib"): "be installed (pip install 'bert_mtl[sweep]')"}  # choices of other packages


class Screened(NamedTuple):
    """The overrides of one run that Hydra takes, and the problems of the others."""

    files: list[str]  # choose files, add or delete keys
    values: list[str]  # set keys
    added: set[str]  # the keys among them that only the schema knows
    problems: list[Problem]

    @property
    def overrides(self) -> list[str]:
        return [*self.files, *self.values]


class Tree:
    """The YAML files of one command as Hydra finds them, and the check of a command line against them."""

    def __init__(self, config_name: str, config_dir: str, extra_sources: Sequence[str] = ()) -> None:
        version.setbase("1.3")
        setup_globals()
        search_path = create_config_search_path(config_dir)
        for source in extra_sources:
            search_path.prepend(provider="command-line", path=source, anchor=SearchPathQuery(provider="schema"))
        self.name = config_name
        self.loader = ConfigLoaderImpl(search_path)
        self.parser = OverridesParser.create(config_loader=self.loader)
        self._composed = functools.lru_cache(maxsize=4)(self._compose)  # composing takes 0.1 s and more
        # Hydra reads the command's own file for each answer, which may name more folders.
        self._listed = functools.cache(functools.partial(self.loader.get_group_options, config_name=config_name))

    def check_all(self, overrides: Sequence[str], schema: type[S]) -> list[str]:
        """Checks a single run; returns the overrides as Hydra takes them. Raises ConfigError."""
        overrides, problems = self.unchained(overrides, schema)
        try:
            added = self.check(overrides, schema)[1]
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from error
        if problems:
            raise ConfigError(problems)
        return self.forced(overrides, added)

    def check(self, overrides: Sequence[str], schema: type[S]) -> tuple[S, set[str]]:
        """Returns the typed configuration and the keys that only the schema knows. Raises ConfigError."""
        screened = self.screen(overrides, schema)
        container, unreadable = resolved(self._load(screened.overrides))
        defaults, _ = resolved(self._load(screened.files))
        invalid: list[Problem] = []
        try:
            config = validate(container, schema, defaults=defaults)
        except ConfigError as error:
            invalid = error.problems
        problems: list[Problem] = []
        unnamed = self._unnamed(screened.files)
        for found in (
            screened.problems,
            self._unchosen(screened.files),
            unnamed,
            [] if unnamed else unreadable,
            invalid,
        ):
            # What is wrong with a key was left out, so that later checks miss it: they are not heard on that key.
            told = {problem.key for problem in problems}
            problems += [problem for problem in found if problem.key not in told]
        if problems:
            raise ConfigError(problems)
        return config, screened.added

    def screen(self, overrides: Sequence[str], schema: type[Schema]) -> Screened:
        """Tells the overrides that fit the tree from those that do not; raises ConfigError where no tree composes."""
        files: list[str] = []
        changes: list[Override] = []
        overrides, problems = self.unchained(overrides, schema)
        for text in overrides:
            override = self.parsed(text)
            if isinstance(override, Problem):
                problems.append(override)
            elif override.is_sweep_override():
                rule = "be one value (a list is written [a,b]; a sweep needs --multirun)"
                problems.append(Problem(override.key_or_group, rule, override.get_value_string()))
            elif wrong := self._wrong_choices(override):
                problems += wrong
            elif override.type is OverrideType.CHANGE and not self._is_group(override):
                changes.append(override)
            else:
                files.append(text)
        files, refused = self._composable([], files)
        try:
            tree: Any = OmegaConf.to_container(self._load(files))
        except REFUSED as error:  # a file is wrong, whatever the overrides
            raise ConfigError([*problems, self._refusal(error)]) from error
        values: list[str] = []
        added: set[str] = set()
        for override in changes:
            path = override.key_or_group.split(".")
            if unknown := unknown_in_tree(path, tree, schema, groups=self.loader.list_groups("")):
                problems.append(unknown)
                continue
            if not exists(path, tree):
                added.add(override.key_or_group)
            values.append(_forced(str(override.input_line), added))
        values, unfit = self._composable(files, values)
        return Screened(files, values, added, [*problems, *refused, *unfit])

    def unchained(self, overrides: Sequence[str], schema: type[Schema]) -> tuple[list[str], list[Problem]]:
        """Returns the overrides with `problem=…` put as Hydra takes it, and what is wrong with it (`conf.problem`)."""
        if "tasks" not in schema.model_fields or not any(map(is_chain, overrides)):
            return list(overrides), []
        try:
            every = self._load([f"task=[{','.join(self.choices('task'))}]"])
        except REFUSED as error:  # the file of a task is wrong, whichever are chosen
            raise ConfigError([self._refusal(error)]) from error
        tasks: Any = OmegaConf.to_container(every.tasks)
        return unchained(overrides, tasks)

    def parsed(self, text: str) -> Override | Problem:
        """Returns an override as Hydra reads it, or what is wrong with it."""
        key, _, value = text.lstrip("+~").partition("=")
        try:
            if key:
                return self.parser.parse_overrides([text])[0]  # which knows the groups that glob(*) goes through
        except HydraException:
            pass
        return Problem(key or "an override", "be written as key=value, a value with special characters in quotes", text)

    def settings(self, overrides: Sequence[str], schema: type[Schema]) -> DictConfig:
        """Returns Hydra's own settings as these overrides have them, the wrong ones left out. Raises ConfigError."""
        return self._load(self.screen(overrides, schema).overrides).hydra

    @staticmethod
    def forced(overrides: Sequence[str], added: set[str]) -> list[str]:
        """Returns the overrides as Hydra takes them, given the keys that only the schema knows."""
        return [_forced(text, added) for text in overrides]

    def choices(self, group: str) -> list[str]:
        """Returns the files of a group, sorted; none where there is no such group."""
        names = self._listed(group)
        return [name for name in names if not name.startswith("_dummy")]  # Hydra keeps one of its own at the root

    def _load(self, overrides: Iterable[str]) -> DictConfig:
        return self._composed(tuple(overrides))

    def _compose(self, overrides: tuple[str, ...]) -> DictConfig:
        # As for a sweep, because Hydra then composes although a group is still to be chosen.
        return self.loader.load_configuration(self.name, list(overrides), RunMode.MULTIRUN)

    def _is_group(self, override: Override) -> bool:
        return bool(self.choices(override.key_or_group)) and not isinstance(override.value(), dict)

    def _wrong_choices(self, override: Override) -> list[Problem]:
        if override.is_delete() or not self._is_group(override):
            return []
        group, chosen = override.key_or_group, override.value()
        choices, names = self.choices(group), chosen if isinstance(chosen, list) else [chosen]
        wrong = [name for name in names if name not in (None, *choices)]
        # A choice in a folder below the group is left to Hydra.
        found = [
            Problem(group, MISSING.get((group, str(name)), "be one of the choices"), name, choices)
            for name in wrong
            if "/" not in str(name)
        ]
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        return found + [Problem(group, "name each choice once", name) for name in twice]

    def _unchosen(self, files: list[str]) -> list[Problem]:
        choices = self._load(files).hydra.runtime.choices
        groups = [str(group) for group in choices if OmegaConf.is_missing(choices, group)]
        return [Problem(group, "be chosen", NOTHING, self.choices(group.split("@")[0])) for group in groups]

    def _unnamed(self, files: list[str]) -> list[Problem]:
        """The chosen files of tasks that do not say which task they are: the one that they are named after."""
        composed = self.loader.compute_defaults_list(self.name, files, RunMode.MULTIRUN)
        packages = {str(each.config_path): each.package for each in composed.defaults}
        chosen = {Path(path).name: package for path, package in packages.items() if path.startswith("task/")}
        return [
            Problem("task", f"choose files whose first line is # @package tasks.{name} (theirs is {package})", name)
            for name, package in chosen.items()
            if package != f"tasks.{name}"
        ]

    def _composable(self, base: list[str], overrides: list[str]) -> tuple[list[str], list[Problem]]:
        """Returns the overrides that Hydra takes on top of `base`, and the problems of those that it refuses."""
        kept: list[str] = []
        problems: list[Problem] = []
        try:
            self._load([*base, *overrides])
            return overrides, []
        except REFUSED:
            pass  # which one it was shows below
        for text in overrides:
            try:
                self._load([*base, *kept, text])
                kept.append(text)
            except REFUSED as error:
                problems.append(self._refusal(error, text))
        return kept, problems

    def _refusal(self, error: Exception, override: str = "") -> Problem:
        """What an exception of Hydra's says about an override, or about the tree."""
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
            return Problem(group or "--config-name", "be one of the choices", choice, self.choices(group))
        message = " ".join(str(error.__cause__ or error).split())
        key, _, value = override.lstrip("+~").partition("=")
        return Problem(key, f"fit the tree ({message})", value) if key else Problem(self.name, "compose", message)

    def help(self, overrides: Sequence[str], schema: type[Schema]) -> str:
        """Returns the text of `--help` for these overrides; raises ConfigError where one does not fit."""
        screened = self.screen(overrides, schema)
        if screened.problems:
            raise ConfigError(screened.problems)
        values: Any = OmegaConf.to_container(self._load(screened.overrides))
        del values["hydra"]
        composed = self.loader.compute_defaults_list(self.name, screened.overrides, RunMode.MULTIRUN)
        chosen: dict[str, list[str]] = {group: [] for group in composed.overrides.known_choices}
        notes: dict[str, str] = {}
        for default in composed.defaults:
            group, _, choice = str(default.config_path).rpartition("/")
            chosen.setdefault(group, []).append(choice)
            prefix = f"{default.package}." if default.package else ""
            notes |= {prefix + key: note for key, note in comments(self._text(f"{group}/{choice}")).items() if note}
        own = sorted(group for group in chosen if group and not group.startswith("hydra"))
        groups = {group: (self.choices(group.split("@")[0]), chosen[group]) for group in own}
        return help_text(_usage(schema), groups, values, notes, schema)

    def _text(self, config: str) -> str:
        """The YAML text of one file of the tree; Hydra's own, which come from its package, have none here."""
        folders = [Path(source.path) for source in self.loader.get_sources() if source.scheme() == "file"]
        files = [folder / f"{config.lstrip('/')}.yaml" for folder in folders]
        return next((file.read_text(encoding="utf-8") for file in files if file.exists()), "")


def _forced(text: str, added: set[str]) -> str:
    """An override of a key that only the schema knows takes `++`, or Hydra would refuse it."""
    return f"++{text}" if text.split("=")[0] in added else text


def quoted(text: str) -> str:
    """A value in quotes, so that no sign in it means anything to Hydra."""
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + (r"\'" if found[2] else ""), text)
    return f"'{text}'"


def program() -> str:
    """The command as it was started, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def _usage(schema: type[Schema]) -> str:
    own = f"{program()} [{schema.positional} ...]" if schema.positional else program()
    return f"Usage: {own} [group=choice ...] [key=value ...] [--multirun] [--cfg job] [--config-dir DIR] [--help]"


def resolved(cfg: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    """Returns `cfg` as plain values without its `hydra` node and without missing keys; and the unreadable ones."""
    setting = HydraConfig.instance()
    outer = setting.cfg
    problems: list[Problem] = []
    if "hydra" in cfg:
        setting.set_config(cfg)  # for ${hydra:...}
    try:
        return _resolved(cfg, (), problems), problems
    finally:
        setting.cfg = outer


def _resolved(node: Any, path: tuple[Any, ...], problems: list[Problem]) -> Any:
    if not OmegaConf.is_config(node):
        return node
    values: dict[Any, Any] = {}
    for key in node if OmegaConf.is_dict(node) else range(len(node)):
        place = (*path, key)
        if place == ("hydra",):
            continue
        try:
            values[key] = _resolved(node[key], place, problems)
        except MissingMandatoryValue:
            continue  # the schema says that it must be given
        except OmegaConfBaseException as error:
            written: Any = OmegaConf.to_container(node)
            problems.append(Problem(dotted(place), f"be readable ({str(error).splitlines()[0]})", written[key]))
    return values if OmegaConf.is_dict(node) else list(values.values())
