"""Distillation: finished runs answer to the train parts, and a new run learns from their answers too.

Hinton et al. 2015 (Distilling the Knowledge in a Neural Network) for one task; from teachers of single tasks to a
student of many it is what Clark et al. 2019 (BAM! Born-Again Multi-Task Networks) do.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file, save

from bert_mtl.answers import Answered, answer_part
from bert_mtl.atomic import atomic_write
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.kinds import Head
from bert_mtl.part_reader import PartReader
from bert_mtl.runs import Run, RunError, load_model, open_run
from bert_mtl.tasks import Task
from bert_mtl.taught import Taught
from conf.errors import ConfigError, Problem

log = logging.getLogger(__name__)


def with_teachers(run: Run, readers: Sequence[PartReader]) -> tuple[PartReader, ...]:
    """The readers of the train parts with what `distill.teachers` answer to them, the mean of several; each teacher is
    asked once, then the answers stay in the run's folder.

    Raises:
        ConfigError: a teacher that answers no head of the run.
        RunError: a teacher of another tokenizer, or that learned from other examples of a task.
    """
    folders = run.config.distill.teachers
    if not folders:
        return tuple(readers)
    arrays: dict[str, np.ndarray] = {}
    if run.taught.exists():
        arrays = load_file(run.taught)
    else:
        teachers = [open_run(folder) for folder in folders]
        for teacher in teachers:
            _check(run, teacher)
        for reader in readers:
            arrays |= _answers(run, teachers, reader)
        if run.chief.here:  # others ask for themselves, as long as the chief does
            with atomic_write(run.taught) as file:
                file.write(save(arrays))
    return tuple(replace(reader, taught=tuple(_taught(reader, arrays))) for reader in readers)


def _taught(reader: PartReader, arrays: dict[str, np.ndarray]) -> Iterator[Taught]:
    for label in reader.columns.labels:
        if f"{label.name}/answers" in arrays:
            yield Taught(label, arrays[f"{label.name}/answers"], arrays[f"{label.name}/splits"])


def _check(run: Run, teacher: Run) -> None:
    """A teacher must answer the run's questions, and must not have learned from its dev or test rows."""
    if not any(True for task in run.tasks for _ in _alike(run, teacher, task)):
        own = [
            head.name for task in run.tasks.values() for head in task.heads.values() if head.answer_shape is not None
        ]
        rule = f"name runs with a head that this one has ({', '.join(own) or 'but none of its heads can be taught'})"
        raise ConfigError([Problem("distill.teachers", rule, str(teacher.folder))])
    if teacher.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise RunError(
            f"the teacher {teacher.folder} must have this run's tokenizer; its tokens are others. "
            "Set tokenizer.* as in its config.yaml."
        )
    for task in run.tasks.keys() & teacher.tasks.keys():
        if any(_alike(run, teacher, task)) and teacher.facts.data[task] != run.facts.data[task]:
            raise RunError(
                f"the teacher {teacher.folder} must have learned task {task} from the same examples, or this run's dev "
                f"and test rows may be among them; its fingerprint is {teacher.facts.data[task][:12]}, got "
                f"{run.facts.data[task][:12]}. Set data.* and tasks.{task}.limit as in its config.yaml."
            )


def _alike(run: Run, teacher: Run, task: str) -> Iterator[tuple[Head, Task, Head]]:
    """The run's heads of a task that the teacher can answer for, each with the teacher's task and head that does: the
    one of its name, or of a head without labels the one of the head whose layer it shares."""
    theirs = {head.name: (other, head) for other in teacher.tasks.values() for head in other.heads.values()}
    for head in run.tasks[task].heads.values():
        found = theirs.get(head.name if head.settings.labelled else head.settings.share_head)
        if found and head.answer_shape is not None and found[1].answer_shape is not None:
            if head.stored_as[1:] == found[1].stored_as[1:]:  # but for its name
                yield (head, *found)


def _asked(task: Task, number: int) -> Task:
    """The task as a teacher reads it that knows it by another `number`: heads without labels want an answer to all."""
    heads = {name: copy.copy(head) for name, head in task.heads.items()}
    for head in heads.values():
        head.needs_label = head.needs_label and head.settings.labelled
    return replace(task, number=number, heads=heads)


def _answers(run: Run, teachers: Sequence[Run], reader: PartReader) -> dict[str, np.ndarray]:
    """`<head>/answers` and `<head>/splits` (see `Taught`) of each head that some teachers have."""
    task = reader.task
    arrays: dict[str, np.ndarray] = {}
    by_head: dict[str, list[Answered]] = {}
    for teacher in teachers:
        if found := list(_alike(run, teacher, task.name)):
            heads = {head.name: other.name for head, _, other in found}
            log.info("%s answers for %s", teacher.folder, ", ".join(heads))
            asked = replace(reader, task=_asked(task, found[0][1].number), shuffle=False)
            pipeline = Pipeline((asked,), run.config.input, run.config.train.eval_batch_size, (reader.examples,))
            for head, answered in answer_part(load_model(teacher), pipeline, heads).items():
                by_head.setdefault(head, []).append(answered)
    for head, several in by_head.items():
        counts = np.zeros(reader.examples, np.int64)
        if isinstance(several[0].answers, list):
            counts[several[0].index] = [len(words) for words in several[0].answers]
        else:
            counts[several[0].index] = 1
        flat = [np.concatenate(each.answers) if isinstance(each.answers, list) else each.answers for each in several]
        arrays[f"{head}/answers"] = np.asarray(np.mean(flat, axis=0, dtype=np.float64), np.float32)
        arrays[f"{head}/splits"] = np.concatenate([[0], np.cumsum(counts)])
    return arrays
