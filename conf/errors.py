"""What can be wrong with a configuration: the schema it must fit, and how each mistake is said.

A mistake names the key, the rule it breaks, what was given and what is allowed; all of them are reported at once.
"""

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, NamedTuple, TypeVar

import pydantic
from hydra.errors import HydraException

from conf.explain import accepted, leaves, shown

NOTHING = "nothing"  # the value of a key that was not given


class Problem(NamedTuple):
    """One mistake. `str()` is `<key> must <rule>; got <value>. Options: a, b, c. Did you mean b?`"""

    key: str
    rule: str
    value: object
    options: Sequence[object] = ()

    def __str__(self) -> str:
        text = f"{self.key} must {self.rule}; got {shown(self.value)}."
        if self.options:
            text += f" Options: {', '.join(map(shown, self.options))}."
            if close := closest(self.value, self.options):
                text += f" Did you mean {close}?"
        return text


class ConfigError(Exception):
    """Every problem of one configuration. `str()` is one problem a line, below a count when there are several."""

    user_error = True
    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list({str(problem): problem for problem in problems}.values())  # a sweep repeats itself
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        if len(lines) > 1:
            lines.insert(0, f"{len(lines)} problems in the configuration:")
        return "\n".join(lines)


class Schema(pydantic.BaseModel):
    """A section of the configuration: no unknown keys, no changes afterwards, no silent conversions ("3" is no int)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)
    verbatim: ClassVar[
        tuple[str, ...]
    ] = ()  # keys whose value on the command line is text as typed, whatever its signs
    positional: ClassVar[str | None] = (
        None  # key of a list that takes the arguments without =, and all paths that exist
    )

    def problems(self) -> list[Problem]:
        """Returns the combinations of keys that cannot work together; asked of the whole configuration only."""
        return []


S = TypeVar("S", bound=Schema)
KeyPath = tuple[str | int, ...]


def validate(container: dict[str, Any], schema: type[S], *, defaults: dict[str, Any] | None = None) -> S:
    """Returns `container` as a `schema`; raises ConfigError with every problem.

    A key that is wrong takes its value from `defaults`, so that its combinations with other keys are checked as well.
    """
    container = json.loads(json.dumps(container, default=str))
    problems: list[Problem] = []
    try:
        config = _typed(container, schema)
    except pydantic.ValidationError as error:
        repaired = copy.deepcopy(container)
        for path, details in _by_key(error, container).items():
            problems.append(_problem(path, details, schema, container))
            _repair(repaired, path, defaults if accepted(schema, path) else None)
        try:
            config = _typed(repaired, schema)
        except pydantic.ValidationError:
            raise ConfigError(problems) from None
    problems += config.problems()
    if problems:
        raise ConfigError(problems)
    return config


def _typed(container: dict[str, Any], schema: type[S]) -> S:
    # Strict JSON mode: lists become tuples and text becomes paths, but neither "3" nor 1.5 becomes an int.
    return schema.model_validate_json(json.dumps(container))


def _repair(container: Any, path: KeyPath, defaults: Any) -> None:
    """Gives the key at `path` its default, or takes it out so that the schema's own default holds."""
    for depth, part in enumerate(path, start=1):
        default = defaults.get(part) if isinstance(defaults, dict) else None
        if depth == len(path) or not isinstance(container.get(part), dict):
            container.pop(part, None)
            if default is not None:
                container[part] = copy.deepcopy(default)
            return
        container, defaults = container[part], default


def _by_key(error: pydantic.ValidationError, container: dict[str, Any]) -> dict[KeyPath, list[Any]]:
    """Groups pydantic's errors by the key of `container` they speak of (a union gives several for one key)."""
    found: dict[KeyPath, list[Any]] = {}
    for detail in error.errors():
        node: Any = container
        path: list[Any] = []
        part: Any
        for part in detail["loc"]:
            # pydantic also names the member of a union it tried: that is no part of the key.
            if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int)):
                path.append(part)
                node = node[part]
        if detail["type"] == "missing":
            path.append(detail["loc"][-1])
        if detail["type"].startswith("union_tag"):
            path.append(detail["ctx"]["discriminator"].strip("'"))
        found.setdefault(tuple(path), []).append(detail)
    # A wrong item makes its list too short as well, a wrong key its section: the innermost says it.
    return {path: details for path, details in found.items() if not any(path == p[: len(path)] != p for p in found)}


def _problem(path: KeyPath, details: Sequence[Any], schema: type[Schema], container: Any) -> Problem:
    """What pydantic's errors about one key of `container` mean to the person who wrote it."""
    kinds = {detail["type"] for detail in details}
    if "extra_forbidden" in kinds or any(detail["loc"][-1:] == ("[key]",) for detail in details):
        section = accepted(schema, path[:-1])
        for part in path[:-1]:
            container = container[part]
        return _unknown_key(path, section.of_kind(container.get("kind")).keys if section else ())
    target = accepted(schema, path)
    options = target.options if target else []
    options = details[0].get("ctx", {}).get("options", options)  # a validator of the schema may know them
    if kinds & {"missing", "union_tag_not_found"}:
        return Problem(dotted(path), "be given", NOTHING, options)
    first = details[0]
    value = first["ctx"]["tag"] if first["type"] == "union_tag_invalid" else first["input"]
    rule = " or ".join(dict.fromkeys(map(_rule, details)))
    if kinds == {"string_type"} and isinstance(value, bool):
        rule += " (YAML reads yes, no, on and off without quotes as true and false)"
    return Problem(dotted(path) or "the configuration", rule, value, options if "options" in rule else ())


RULES = {
    "literal_error": "be one of the options",
    "union_tag_invalid": "be one of the options",
    "int_type": "be a whole number",
    "float_type": "be a number",
    "bool_type": "be true or false",
    "string_type": "be text",
    "list_type": "be a list",
    "tuple_type": "be a list",
    "dict_type": "be a section of keys",
    "model_type": "be a section of keys",
    "greater_than_equal": "be at least {ge:g}",
    "less_than_equal": "be at most {le:g}",
    "too_short": "have at least {min_length} entries",
    "too_long": "have at most {max_length} entries",
}


def _rule(detail: Any) -> str:
    if detail["type"] in RULES:
        return RULES[detail["type"]].format(**detail.get("ctx", {}))
    # "Input should be greater than 0", or "Value error, be even" from a validator of the schema.
    return re.sub(r"^(\w+ should |Value error, )", "", detail["msg"])


def unknown_in_tree(
    path: Sequence[str], tree: Mapping[str, Any], schema: type[Schema], groups: Sequence[str]
) -> Problem | None:
    """Returns the problem of a key that neither the composed `tree` nor, in a section of the tree, the schema has."""
    if exists(path, tree) or (exists(path[:-1], tree) and accepted(schema, path)):
        return None
    depth = next(n for n in range(1, len(path) + 1) if not exists(path[:n], tree))
    section: Any = tree
    for part in path[: depth - 1]:
        section = section[part]
    field = accepted(schema, path[: depth - 1])
    siblings = [*(section if isinstance(section, Mapping) else ()), *(field.keys if field else ())]
    if depth == 1:
        siblings = [name for name in siblings + list(groups) if name != "hydra"]
    everywhere = [key for key, _ in leaves(tree) if not key.startswith("hydra.")]
    return _unknown_key(path[:depth], dict.fromkeys(siblings), everywhere)


def exists(path: Sequence[str], tree: Any) -> bool:
    """Returns whether `tree` has the key at `path`; a number is the index of a list."""
    for part in path:
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        else:
            return False
    return True


def _unknown_key(path: Sequence[str | int], siblings: Iterable[str], everywhere: Iterable[str] = ()) -> Problem:
    """Offers the siblings of an unknown key, or the same name in other sections where no sibling is alike."""
    *section, name = map(str, path)
    options = list(siblings)
    if not closest(name, options):
        options = [key for key in everywhere if key.endswith(f".{name}")] or options
    return Problem(dotted(path), f"be a key of {dotted(section) or 'the configuration'}", name, options)


def told_alone(error: BaseException) -> bool:
    """Whether the user, not the program, made the mistake, so that its message is enough."""
    if getattr(error, "user_error", False) or isinstance(error, HydraException):
        return True
    return isinstance(error, OSError) and bool(error.filename)  # a path that cannot be read or written


def closest(value: object, options: Iterable[object]) -> str | None:
    """Returns the option most like `value`, or None when nothing is alike (or `value` is an option already)."""
    names = [str(option) for option in options]
    matches = get_close_matches(str(value), names, n=1)
    return matches[0] if matches and str(value) not in names else None


def dotted(path: Iterable[str | int]) -> str:
    """Returns the key as the command line writes it."""
    return ".".join(map(str, path))
