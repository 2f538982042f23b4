"""What each key means and accepts: explanations from the YAML comments, types from the schema; together, `--help`."""

import re
import shutil
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pydantic
import yaml

TYPE_NAMES = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null", Path: "path"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Explained(NamedTuple):
    """A key as one file writes it; `comment` is None where the file does not explain it."""

    file: Path
    key: str
    comment: str | None


def explained_keys(config_dir: Path) -> list[Explained]:
    """Returns every key that holds a value, in every YAML file below `config_dir` (`defaults` lists left out)."""
    found = []
    for file in sorted(Path(config_dir).rglob("*.yaml")):
        notes = comments(file.read_text(encoding="utf-8"))
        found += [
            Explained(file, key, note) for key, note in notes.items() if not any(k.startswith(f"{key}.") for k in notes)
        ]
    return found


def comments(text: str) -> dict[str, str | None]:
    """Returns {dotted key: its comment} of a YAML document: what stands behind the value, else right above the key."""
    found = _comments(yaml.compose(text), text.splitlines(), "")
    return {key: comment for key, comment in found if key.split(".")[0] != "defaults"}


def _comments(node: yaml.Node | None, lines: list[str], prefix: str) -> Iterator[tuple[str, str | None]]:
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        yield dotted, _behind(key, value, lines) or _above(key, lines)
        yield from _comments(value, lines, f"{dotted}.")


def _behind(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str | None:
    """The comment behind the value, or behind the key where a block of lines follows it."""
    block = value.style in ("|", ">") if isinstance(value, yaml.ScalarNode) else not value.flow_style
    mark = key.end_mark if block else value.end_mark
    rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    found = re.search(r"(?:^|\s)#\s*(\S.*)", rest)
    return found[1].strip() if found else None


def _above(key: yaml.Node, lines: list[str]) -> str | None:
    """The comment lines directly above a key, at its indentation."""
    found: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        body = line.strip()
        if not body.startswith("#") or line.index("#") != key.start_mark.column or body.startswith("# @package"):
            break
        found.insert(0, body.lstrip("# "))
    return " ".join(found) or None


class Variants(NamedTuple):
    """Mark on an annotation: the value is one of these schemas, which may be registered later."""

    schemas: Mapping[str, Any]  # name -> class with the schema as its `Settings`


class Accepted(NamedTuple):
    """What a key takes: the annotation of the schema's field and the constraints on it."""

    annotation: Any
    metadata: Sequence[Any] = ()

    @property
    def options(self) -> list[Any]:
        """The values of a `Literal`, alone or within a union."""
        return [value for part in self._parts() for value in _literal(part.annotation)]

    @property
    def keys(self) -> list[str]:
        """The keys of a section that the schema names."""
        found: list[str] = []
        for annotation, _ in self._parts():
            if _is_model(annotation):
                found += annotation.model_fields
            elif get_origin(annotation) in (dict, Mapping):
                found += _literal(get_args(annotation)[0])
        return list(dict.fromkeys(found))

    def of_kind(self, kind: object) -> "Accepted":
        """What is taken where the section says that it is of this `kind`."""
        return next((part for part in self._parts() if kind is not None and kind in part.metadata), self)

    def __str__(self) -> str:
        return " | ".join(dict.fromkeys(_type_name(*part) for part in self._parts()))

    def _parts(self) -> "list[Accepted]":
        """The members of a union, each with its own constraints; the annotation alone where it is none."""
        if get_origin(self.annotation) is Annotated:
            annotation, *extra = get_args(self.annotation)
            flat = [m for e in extra for m in (e.metadata if isinstance(e, pydantic.fields.FieldInfo) else [e])]
            if variants := [m for m in flat if isinstance(m, Variants)]:
                return [Accepted(kind.Settings, [name]) for name, kind in variants[0].schemas.items()]
            return Accepted(annotation, [*self.metadata, *flat])._parts()
        if get_origin(self.annotation) in (Union, types.UnionType):
            return [part for member in get_args(self.annotation) for part in Accepted(member, self.metadata)._parts()]
        return [self]


def accepted(annotation: Any, path: Sequence[str | int]) -> Accepted | None:
    """Returns what the key at `path` below `annotation` (a schema) takes; None where the schema has no such key."""
    return _at(Accepted(annotation), path)


def _at(place: Accepted, path: Sequence[str | int]) -> Accepted | None:
    if not path:
        return place
    found = [inner for part in place._parts() if (inner := _at_part(part.annotation, path))]
    # Members of a union may share a key, such as the one that tells them apart.
    return found[0] if len(found) == 1 else Accepted(Union[tuple(f.annotation for f in found)]) if found else None  # noqa: UP007


def _at_part(annotation: Any, path: Sequence[str | int]) -> Accepted | None:
    name, *rest = path
    if _is_model(annotation) and name in annotation.model_fields:
        field = annotation.model_fields[name]
        return _at(Accepted(field.annotation, field.metadata), rest)
    if get_origin(annotation) in (dict, Mapping):
        names, item = get_args(annotation)
        return _at(Accepted(item), rest) if not _literal(names) or name in _literal(names) else None
    return _at(Accepted(get_args(annotation)[0]), rest) if get_origin(annotation) in (list, tuple) else None


def _type_name(annotation: Any, metadata: Iterable[Any]) -> str:
    if _literal(annotation):
        return " | ".join(map(shown, _literal(annotation)))
    if get_origin(annotation) in (list, tuple):
        return f"list of {Accepted(get_args(annotation)[0])}"
    if _is_model(annotation) or get_origin(annotation) in (dict, Mapping):
        return "section"
    limits = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in BOUNDS.items() if hasattr(m, name)]
    name = TYPE_NAMES.get(annotation, "value")
    return f"{name} {', '.join(limits)}" if limits and annotation in (int, float) else name


def _literal(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def help_text(
    usage: str,
    groups: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    values: Mapping[str, Any],
    notes: Mapping[str, str],
    schema: type[pydantic.BaseModel],
) -> str:
    """Returns the whole `--help`: `groups` is {group: (choices, chosen)}, `notes` {key: explanation}."""
    rows = [
        (name, "  ".join(f"*{c}" if c in chosen else c for c in choices)) for name, (choices, chosen) in groups.items()
    ]
    lines = [usage, "", "Groups: group=choice, or group=[a,b] for several (* chosen)", *_table(rows)]
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in leaves(values):
        field = accepted(schema, key.split("."))
        about = [f"({field})"] if field else []
        section = key.split(".")[0] if "." in key else ""
        sections.setdefault(section, []).append((f"{key}={shown(value)}", " ".join([*about, notes.get(key, "")])))
    for section, rows in sections.items():
        lines += ["", ": ".join(filter(None, [section or "Keys: key=value", notes.get(section)])), *_table(rows)]
    if "tasks" in schema.model_fields:
        chain = ('problem="imdb|snips_intent"', "instead of task: tasks parted by |, heads of one task by &")
        lines += ["", "tasks: what they and their heads take besides", *_table([chain, *_unset(values, schema)])]
    return "\n".join(lines)


def _unset(values: Mapping[str, Any], schema: type[pydantic.BaseModel]) -> Iterator[tuple[str, str]]:
    """(key, what it takes) of all that the sections of tasks and heads do not hold."""
    for name, task in values.get("tasks", {}).items():
        sections: dict[tuple[str, ...], Any] = {("tasks", name): task}
        sections |= {("tasks", name, "heads", head): held for head, held in task.get("heads", {}).items()}
        for path, held in sections.items():
            if field := accepted(schema, path):
                own = field.of_kind(held.get("kind"))
                for key in (key for key in own.keys if key not in held):
                    yield ".".join((*path, key)), f"({_at(own, [key])})"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns as wide as the terminal; a left cell too long for its column has its text on the lines below."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 140))
    limit = width * 2 // 5
    indent = max((len(left) + 4 for left, _ in rows if len(left) + 4 <= limit), default=8)
    lines = []
    for left, right in rows:
        text = textwrap.wrap(right, width - indent, break_long_words=False, break_on_hyphens=False)
        first = f"  {left}".ljust(indent) + text.pop(0) if text and len(left) + 4 <= indent else f"  {left}"
        lines += [first.rstrip(), *(" " * indent + line for line in text)]
    return lines


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of everything that is no section, the keys of a section before its own sections."""
    for key, value in sorted(values.items(), key=lambda item: isinstance(item[1], Mapping) and bool(item[1])):
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: object) -> str:
    """Returns `value` as YAML would write it; text that reads like another type is quoted."""
    if isinstance(value, str):
        return repr(value) if re.fullmatch(r"|true|false|null|\s.*|.*\s|[-+]?[\d._]+(e[-+]?\d+)?", value) else value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)
