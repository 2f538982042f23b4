"""Weights & Biases: a run of its own for every job, kept under one id with the job's folder."""

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb
from wandb.sdk.lib import wbauth

from bert_mtl.atomic import atomic_write
from bert_mtl.config import TrackingConfig
from bert_mtl.tracking.names import better
from bert_mtl.tracking.tracker import Careful, Cell, Job, Package, Tracker

log = logging.getLogger(__name__)

KEPT = "wandb.json"  # the id of the folder's run, and where it is shown
LARGE = 64 << 20  # bytes from which files are named by their checksums where they are not asked for


def start(config: TrackingConfig, job: Job, careful: Careful) -> None:
    """Adds the tracker to `careful`; offline, and said so, where the service does not answer or refuses the key."""
    online = config.mode == "online" or (config.mode == "auto" and has_key())
    if online:
        try:
            careful.trackers.append(WeightsAndBiases(config, job, online=True))
            return
        except (wandb.errors.Error, OSError) as error:
            reason = str(error).split("\n")[0]
            careful.note("wandb", "the run", f"{reason}. It is kept offline instead")
    try:
        careful.trackers.append(WeightsAndBiases(config, job, online=False))
    except (wandb.errors.Error, OSError) as error:
        careful.note("wandb", "the run", error)


def has_key() -> bool:
    """Whether a key is known: by WANDB_API_KEY, `wandb login` or a .netrc. Nobody is asked for one."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    settings = wandb.setup().settings
    return bool(settings.api_key or wbauth.read_netrc_auth(host=settings.base_url))


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases. Raises wandb.errors.Error where it cannot start."""

    name = "wandb"

    def __init__(self, config: TrackingConfig, job: Job, online: bool):
        self.config, self.job, self.online = config, job, online
        file = job.folder / KEPT
        kept = json.loads(file.read_text()) if file.exists() else {}
        job.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode="online" if online else "offline",
            dir=job.folder,
            id=kept.get("id"),  # else that of a sweep's agent, or a new one
            resume="allow" if online else None,  # offline, the files of one id become one run as they are synced
            name=job.name,
            job_type=job.kind,
            group=config.group or job.group,
            tags=list(job.tags),
            config=dict(job.config),
            settings=wandb.Settings(
                silent=True,
                console="off",  # the bar redraws its lines
                init_timeout=config.timeout,
                git_root=str(Path(__file__).parent),
            ),
        )
        for handler in logging.getLogger("wandb").handlers:  # of its debug.log: no traceback a line on a full disk
            setattr(handler, "handleError", lambda record: None)  # noqa: B010
        self.defined: set[str] = set()
        with atomic_write(file) as written:
            facts = {"id": self.run.id, "project": config.project, "entity": config.entity}
            written.write(json.dumps(facts | {"url": self.run.url if online else None}, indent=1).encode())
        log.info("wandb: %s", self.run.url if online else f"offline, in {self.run.dir}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name in values.keys() - self.defined:
            self.defined.add(name)
            if name not in ("step", "epoch"):
                self.run.define_metric(name, step_metric="step", summary=better(name))
        self.run.log({"step": step, **values})

    def total(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self.run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def lines(self, name: str, x: str, xs: Sequence[float], ys: Mapping[str, Sequence[float | None]]) -> None:
        known = {
            line: [(a, b) for a, b in zip(xs, values, strict=True) if b is not None] for line, values in ys.items()
        }
        own = [[a for a, _ in points] for points in known.values()]
        values = [[b for _, b in points] for points in known.values()]
        self.run.log({name: wandb.plot.line_series(own, values, keys=list(known), title=name, xname=x)})

    def confusion(self, name: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        rows = [
            [true, predicted, count]
            for true, row in zip(labels, counts, strict=True)
            for predicted, count in zip(labels, row, strict=True)
        ]
        table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
        fields = {str(column): column for column in table.columns}
        self.run.log({name: wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": name})})

    def uses(self, package: Package) -> None:
        # `use_artifact` refuses offline what a record of its kind says: synced, the artifact is an input of the run.
        aliases = list(package.aliases)
        self.run._log_artifact(self._artifact(package), aliases=aliases, is_user_created=True, use_after_commit=True)

    def makes(self, package: Package) -> None:
        self.run.log_artifact(self._artifact(package), aliases=list(package.aliases))

    def _artifact(self, package: Package) -> wandb.Artifact:
        artifact = wandb.Artifact(package.name, package.kind, metadata=dict(package.metadata))
        for name, file in package.files.items():
            if self.config.files or file.stat().st_size < LARGE:
                artifact.add_file(str(file), name)
            else:
                artifact.add_reference(file.absolute().as_uri(), name)
        return artifact

    def end(self, failed: bool) -> None:
        """Raises TimeoutError where the service takes longer than `tracking.timeout` for what is still to be sent, and
        OSError where wandb's own process could not write."""
        problems: list[Exception] = []

        def finish() -> None:
            try:
                self.run.finish(int(failed))
            except Exception as error:  # it belongs to the thread that waits
                problems.append(error)

        ending = threading.Thread(target=finish, daemon=True)
        ending.start()
        ending.join(self.config.timeout)
        if ending.is_alive():
            raise TimeoutError(f"not all was sent in {self.config.timeout} s. {self.advice}")
        if problems:
            raise problems[0]
        if lost := self._errors():
            raise OSError(f"{len(lost)} errors of wandb, the first: {lost[0]}")
        if not self.online:
            log.info("wandb: %s", self.advice)

    def _errors(self) -> list[str]:
        """What wandb's own process has failed at, which tells nobody but its log."""
        file = Path(self.run.settings.log_internal)
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        return [line.partition('"msg":')[2].rstrip("}") for line in lines if '"level":"ERROR"' in line]

    @property
    def advice(self) -> str:
        """How what is kept offline gets to the service."""
        return f"Send it with: wandb sync {Path(self.run.dir).parent}"
