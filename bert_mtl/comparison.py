"""Groups of finished runs in, all that a comparison of them says out, as `compare.json` holds it."""

from collections.abc import Sequence

from bert_mtl.answer_table import AnswerTable, read_answers
from bert_mtl.duel import Duel, Side
from bert_mtl.groups import FinishedRun, Group
from bert_mtl.overlays import curves, speed
from bert_mtl.significance import holm
from conf.errors import ConfigError, Problem

LEVEL = 0.05  # adjusted p below which a difference counts as shown


def compare_groups(groups: Sequence[Group], part: str, resamples: int, seed: int, notes: Sequence[str] = ()) -> dict:
    """The payload: of every head the groups' scores, differences to the baseline with interval, p and verdict, and
    where answers differ; beside them curves, speed, what is configured in another way, and `notes`.

    Raises:
        ConfigError: a run has no answers to the part.
    """
    duels = _duels(groups, part)
    heads = {duel.head: duel.report(resamples, seed) for duel in duels}
    tests = [result for head in heads.values() for result in head["against"] if result is not None]
    _adjust(tests)
    told = [*notes, *(note for duel in duels for note in duel.notes), *_method(groups, tests, resamples)]
    return {
        "part": part,
        "groups": [
            {"name": group.name, "runs": [run.facts() for run in group.runs], "differs": group.differs}
            for group in groups
        ],
        "heads": heads,
        "curves": curves(groups),
        "speed": [speed(group) for group in groups],
        "configs": {key: [group.differs[key] for group in groups] for key in groups[0].differs},
        "notes": list(dict.fromkeys(told)),
    }


def _duels(groups: Sequence[Group], part: str) -> list[Duel]:
    """One for every head that some group has in all of its runs, in the order in which they have them."""
    tables = _tables([run for group in groups for run in group.runs], part)
    heads = dict.fromkeys(head for own in tables.values() for table in own.values() for head in table.heads)
    names, found = [group.name for group in groups], []
    for head in heads:
        sides = [_sides(group, head, tables) for group in groups]
        notes = [note for group in groups if (note := _lacking(group, head, part, tables))]
        if any(sides):
            found.append(Duel(head, names, sides))
            found[-1].notes += notes
    return found


def _sides(group: Group, head: str, tables: dict[FinishedRun, dict[str, AnswerTable]]) -> list[Side]:
    """What each run of the group has answered, where all of them have the head."""
    sides = [
        Side(run, head, task, table) for run in group.runs for task, table in tables[run].items() if head in table.heads
    ]
    return sides if len(sides) == len(group.runs) else []


def _lacking(group: Group, head: str, part: str, tables: dict[FinishedRun, dict[str, AnswerTable]]) -> str | None:
    """What is said of a group of which some runs alone have answers of the head."""
    without = [run for run in group.runs if not any(head in table.heads for table in tables[run].values())]
    if not without or len(without) == len(group.runs):
        return None
    return (
        f"{head}: {group.name} is left out, as {', '.join(run.name for run in without)} has no answers to {part}; "
        f"python -m bert_mtl.report run={without[0].folder} writes them."
    )


def _tables(runs: Sequence[FinishedRun], part: str) -> dict[FinishedRun, dict[str, AnswerTable]]:
    """By run and task. Raises ConfigError with every run that has none."""
    found = {}
    for run in runs:
        tables = {task: read_answers(run.folder, part, task) for task in run.config["tasks"]}
        found[run] = {task: table for task, table in tables.items() if table is not None}
    if without := [run for run, tables in found.items() if not tables]:
        rule = f"have answers to {part}; python -m bert_mtl.report run={{}} writes them"
        raise ConfigError([Problem("runs", rule.format(run.folder), str(run.folder)) for run in without])
    return found


def _adjust(tests: Sequence[dict]) -> None:
    """Adds `p_adjusted` and `verdict`, over all heads and groups; McNemar's tests are a family of their own."""
    for result, adjusted in zip(tests, holm([result["p"] for result in tests]), strict=True):
        shown = "better" if result["difference"] > 0 else "worse"
        result |= {"p_adjusted": adjusted, "verdict": shown if adjusted < LEVEL else "no difference shown"}
    exact = [result["mcnemar"] for result in tests if result["mcnemar"]]
    for result, adjusted in zip(exact, holm([result["p"] for result in exact]), strict=True):
        result["p_adjusted"] = adjusted


def _method(groups: Sequence[Group], tests: Sequence[dict], resamples: int) -> list[str]:
    """What a reader must know of how it was compared."""
    if len(groups) == 1:
        return ["All runs have one configuration but for their seeds: they are one group, with nothing to compare."]
    if not tests:
        return []
    notes = [
        f"Intervals (95 %) and p are of a paired bootstrap, {resamples:,} resamples of the examples and, in groups of "
        "several, of the runs. Of a single run nothing is known of other seeds.",
        f"p is adjusted for the number of comparisons, {len(tests)} (Holm); below {LEVEL} a difference is shown.",
    ]
    if 2 * len(tests) / (resamples + 1) >= LEVEL:
        notes.append(f"{resamples:,} resamples are too few for {len(tests)} comparisons to show any difference.")
    return notes
