"""`problem="imdb|snips_intent&snips_slots"`: what to learn, as bert-multitask-learning (m3tl) writes it.

Names are those of heads; `&` joins heads that read the same texts, `|` those of different ones. Here that is a choice
of tasks, without the heads that are not named.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conf.errors import ConfigError, Problem


def full_name(task: str, head: str) -> str:
    """What a head is called outside its task's YAML: the task's name where both are equal, else `<task>_<head>`."""
    return head if head == task else f"{task}_{head}"


def is_chain(override: str) -> bool:
    """Returns whether an override of the command line is `problem=…`."""
    return override.startswith("problem=")


def unchained(overrides: Sequence[str], tasks: Mapping[str, Any]) -> tuple[list[str], list[Problem]]:
    """Returns the overrides with `problem=…` put as the choice among `tasks` (name -> its section) that it means; and
    what is wrong with it, where it is left out."""
    found: list[str] = []
    problems: list[Problem] = []
    others = [text for text in overrides if is_chain(text) or text.lstrip("+~").split("=")[0] == "task"]
    for text in overrides:
        if not is_chain(text):
            found.append(text)
        elif len(others) > 1:
            problems.append(Problem("problem", "be given once, and without task", " ".join(others)))
        else:
            try:
                found += _choice(text.removeprefix("problem=").strip("'\""), tasks)
            except ConfigError as error:
                problems += error.problems
    return found, problems


def _choice(chain: str, tasks: Mapping[str, Any]) -> list[str]:
    """The overrides that choose the tasks of a chain and take their other heads away. Raises ConfigError."""
    heads = {full_name(task, head): (task, head) for task in tasks for head in tasks[task].get("heads", ())}
    groups = [[name.strip() for name in group.split("&")] for group in chain.split("|")]
    names = [name for group in groups for name in group]
    if "" in names:
        raise ConfigError([Problem("problem", "have a name on both sides of | and &", chain)])
    if unknown := [Problem("problem", "name heads of tasks", name, list(heads)) for name in names if name not in heads]:
        raise ConfigError(unknown)
    chosen: dict[str, list[str]] = {}
    for group in groups:
        if len({heads[name][0] for name in group}) > 1:
            raise ConfigError([Problem("problem", "join heads of different tasks by |, not &", "&".join(group))])
        task = heads[group[0]][0]
        if task in chosen or len(set(group)) < len(group):
            raise ConfigError([Problem("problem", "name each head once, and join those of one task by &", chain)])
        chosen[task] = [heads[name][1] for name in group]
    left_out = [text for task, kept in chosen.items() for text in _without(task, tasks[task], kept)]
    return [f"task=[{','.join(chosen)}]", *left_out]


def _without(task: str, section: Mapping[str, Any], kept: Sequence[str]) -> Iterator[str]:
    """The overrides that take all heads but those `kept` away, and what the task's sources say of them."""
    for head in (head for head in section["heads"] if head not in kept):
        yield f"~tasks.{task}.heads.{head}"
        for name, source in section.get("sources", {}).items():
            for key in ("columns", "labels"):
                if head in source.get(key, ()):
                    yield f"~tasks.{task}.sources.{name}.{key}.{head}"
