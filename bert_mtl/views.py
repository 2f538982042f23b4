"""Saved views of Weights & Biases: tasks in, workspaces of diagrams out, by the names that trackers give to values.

A view's own name follows from its place and title, so that a later one of the same title takes the place of the first.
"""

import hashlib
from collections.abc import Iterator, Mapping

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports.v2.interface import PanelTypes

from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification
from bert_mtl.tasks import Task
from bert_mtl.tracking.names import path_of

GPUS = 8  # lines in the diagrams of GPUs: as many as a machine has
SPEED = "speed/tokens_per_second"


class ViewError(Exception):
    """A view has no place to be saved: says what to do."""

    user_error = True


def make_views(entity: str, project: str, tasks: Mapping[str, Task]) -> list[ws.Workspace]:
    """The views of a project, not saved: "Training", "Single against multi-task" and "Serving"."""
    job, columns = expr.Metric("JobType"), ["summary:score.max", f"summary:{SPEED}"]
    trained, drift = [job == "train"], [job == "drift"]
    seeds = ws.RunsetSettings(filters=trained, groupby=[expr.Metric("Group")], pinned_columns=columns)
    mixtures = ws.RunsetSettings(filters=trained, groupby=[expr.Config("task_names")], pinned_columns=columns)
    contents = {
        "Training": (training(tasks), seeds),
        "Single against multi-task": (comparison(tasks), mixtures),
        "Serving": (serving(), ws.RunsetSettings(filters=drift)),
    }
    views = []
    for title, (sections, runs) in contents.items():
        view = ws.Workspace(entity=entity, project=project, name=title, sections=sections, runset_settings=runs)
        view._internal_name = view_name(entity, project, title)  # the library leaves no other way to choose it
        views.append(view)
    return views


def view_name(entity: str, project: str, title: str) -> str:
    """What the service knows a view by: as many signs as the library draws at random, here from where it stands."""
    return f"nw-{hashlib.sha256(f'{entity}/{project}/{title}'.encode()).hexdigest()[:11]}-v"


def save_view(view: ws.Workspace) -> str:
    """Saves a view, over the one of its name where there is one; returns its URL.

    Raises:
        ViewError: there is no such project. What the library raises of the service goes through.
    """
    try:
        view._internal_id = ws.Workspace.from_url(view.url)._internal_id
    except ValueError as error:
        if str(error).startswith("Project "):
            wrong = f"project must be one of {view.entity} with runs; got {view.project}."
            advice = "Train one with tracking=wandb, or send what was kept offline with `wandb sync`."
            raise ViewError(f"{wrong} {advice}") from error
        if not str(error).startswith("Workspace "):  # "Workspace `name` not found": it is the first of its name
            raise
    view.save()
    return view.url


def training(tasks: Mapping[str, Task]) -> list[ws.Section]:
    """Sections of losses and dev scores by task, of the mixture, of speed and of the machine, over steps."""
    together = [_lines("Score", "score"), _lines("Loss", "loss"), _lines("Learning rate", "optimizer/learning_rate")]
    weights = [f"weight/{path}" for path in _heads(tasks)]
    mixture = [_lines("Shares", *(f"mixing/{task}" for task in tasks)), _lines("Weights of losses", *weights)]
    speed = [_lines("Tokens per second", SPEED), _lines("MFU", "speed/mfu"), _lines("Packing: fill", "packing/fill")]
    own = {
        f"Task {name}": [panel for path, head in _heads({name: task}).items() for panel in _learning(path, head)]
        for name, task in tasks.items()
    }
    contents = {"All tasks": together, **own, "Mixture": mixture, "Speed": speed, "Machine": _machine()}
    return [ws.Section(name=name, panels=panels, is_open=name != "Machine") for name, panels in contents.items()]


def comparison(tasks: Mapping[str, Task]) -> list[ws.Section]:
    """Sections of the best dev score of each head, of speed and score, and of what differs in the configuration."""
    best: list[PanelTypes] = [
        wr.BarPlot(title=f"{path}: best dev {head.metric}", metrics=[f"{_dev(path, head)}.max"])
        for path, head in _heads(tasks).items()
        if head.settings.labelled
    ]
    speed, score = wr.SummaryMetric(SPEED), wr.SummaryMetric("score.max")
    contents: dict[str, list[PanelTypes]] = {
        "Best dev scores": best,
        "Speed and score": [wr.ScatterPlot(title="Best score by tokens per second", x=speed, y=score)],
        "What differs": [wr.RunComparer(diff_only="split")],
    }
    return [ws.Section(name=name, panels=panels, is_open=True) for name, panels in contents.items()]


def serving() -> list[ws.Section]:
    """Sections of how far what is served has moved from what was learned."""
    psi = wr.LinePlot(title="Population stability index", x="WallTime", metric_regex="^drift/.+/psi$")
    contents: dict[str, PanelTypes] = {
        "Stability": psi,
        "Drift": wr.WeavePanelSummaryTable(table_name="drift"),
        "Sampled predictions": wr.WeavePanelSummaryTable(table_name="predictions"),
    }
    wide = ws.SectionLayoutSettings(columns=1, rows=1)
    return [
        ws.Section(name=name, panels=[panel], is_open=True, layout_settings=wide) for name, panel in contents.items()
    ]


def _heads(tasks: Mapping[str, Task]) -> dict[str, Head]:
    """The heads by what their values are called."""
    return {path_of(name, head.name): head for name, task in tasks.items() for head in task.heads.values()}


def _dev(path: str, head: Head) -> str:
    return f"{path}/dev_{head.metric}"


def _learning(path: str, head: Head) -> Iterator[PanelTypes]:
    yield _lines(f"{path}: loss", f"{path}/loss")
    if head.settings.labelled:
        yield _lines(f"{path}: dev {head.metric}", _dev(path, head))
    if isinstance(head, Classification):  # which exits there are differs between runs
        exits = rf"^{path}/exit\d+/dev_{head.metric}$"
        yield wr.LinePlot(title=f"{path}: dev {head.metric} of exits", x="step", metric_regex=exits)


def _machine() -> list[PanelTypes]:
    """Diagrams of what wandb itself measures."""
    names = {
        "GPU: busy, %": [f"system/gpu.{number}.gpu" for number in range(GPUS)],
        "GPU: memory, %": [f"system/gpu.{number}.memoryAllocated" for number in range(GPUS)],
        "CPU, %": ["system/cpu"],
        "Memory, %": ["system/memory_percent"],
    }
    return [wr.LinePlot(title=title, x="RelativeTime(Wall)", y=[*y]) for title, y in names.items()]


def _lines(title: str, *names: str) -> PanelTypes:
    return wr.LinePlot(title=title, x="step", y=[*names])
