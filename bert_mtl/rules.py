"""What is impossible about a configuration though every value alone is valid: combinations, each with key and rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bert_mtl import mixing
from bert_mtl.kinds import KINDS, HeadSettings
from conf.errors import Problem
from conf.problem import full_name

if TYPE_CHECKING:
    from bert_mtl.config import DataConfig, InputConfig, ModelConfig, TaskConfig, TokenizerConfig, TrainConfig

RESERVED = ("text", "text_b", "tokens")  # fields of a row that are no labels


def task_problems(tasks: Mapping[str, TaskConfig], data: DataConfig) -> list[Problem]:
    """Of tasks and the data chosen for them."""
    found = [problem for name, task in tasks.items() for problem in _of_task(name, task, data)]
    found += _of_names(tasks)
    if data.path is not None and data.source == "sample":
        found.append(Problem("data.path", "be null with data=sample (use data=full)", data.path))
    if data.workers == 0 or data.workers < -1:
        found.append(Problem("data.workers", "be -1 or at least 1", data.workers))
    if data.dev_fraction + data.test_fraction >= 1:
        total = data.dev_fraction + data.test_fraction
        found.append(Problem("data.dev_fraction", "leave a share for train beside data.test_fraction", total))
    return found


def text_problems(model: ModelConfig, tokenizer: TokenizerConfig, input: InputConfig) -> list[Problem]:
    """Of the model's sizes and the lengths of texts and rows."""
    found, size, longest = [], model.size, tokenizer.max_length
    if (model.weights is None) == (size is None):
        found.append(Problem("model.size", "be given without model.weights, and only then", size))
    if size is not None and size.hidden_dim % size.num_heads:
        rule = f"be a multiple of model.size.num_heads ({size.num_heads})"
        found.append(Problem("model.size.hidden_dim", rule, size.hidden_dim))
    if size is not None and longest > size.max_positions:
        rule = f"be at most model.size.max_positions ({size.max_positions})"
        found.append(Problem("tokenizer.max_length", rule, longest))
    if input.row_length is not None and input.row_length < longest:
        rule = f"be null or at least tokenizer.max_length ({longest})"
        found.append(Problem("input.row_length", rule, input.row_length))
    if input.pad_to > longest:
        found.append(Problem("input.pad_to", f"be at most tokenizer.max_length ({longest})", input.pad_to))
    return found


def training_problems(config: TrainConfig) -> list[Problem]:
    """Of what training adds to tasks and texts."""
    found = mixing.problems(config.mixing, config.tasks) + _of_exits(config)
    if config.run.resume is not None and not (Path(config.run.resume) / "config.yaml").exists():
        found.append(Problem("run.resume", "be a folder that bert_mtl.train wrote", config.run.resume))
    if config.strategy.kind in ("mirrored", "multi_worker"):
        found += replica_problems(config)
    unlabelled = [full_name(t, h) for t, task in config.tasks.items() for h, s in task.heads.items() if not s.labelled]
    if unlabelled and not config.distill.teachers:
        rule = f"name runs that answer for {', '.join(unlabelled)}, which has no labels"
        found.append(Problem("distill.teachers", rule, []))
    if unlabelled and config.mixing.kind == "dev_score":
        rule = f"not be dev_score beside {', '.join(unlabelled)}, which has no labels"
        found.append(Problem("mixing", rule, "dev_score", ("proportional", "temperature", "explicit")))
    devices = config.strategy.devices
    if config.strategy.kind == "multi_worker" and devices:
        rule = "be null with strategy=multi_worker, which takes all GPUs it sees (CUDA_VISIBLE_DEVICES)"
        found.append(Problem("strategy.devices", rule, devices))
    if config.strategy.kind == "multi_worker" and config.data.rebuild:
        rule = (
            "be false with strategy=multi_worker, whose workers read what one of them would replace (data_prep.build)"
        )
        found.append(Problem("data.rebuild", rule, True))
    if config.strategy.kind == "one_device" and devices and len(devices) > 1:
        found.append(Problem("strategy.devices", "name one device with strategy=one_device", devices))
    if config.train.r_drop and not config.model.dropout:
        rule = "be 0 without model.dropout, which sets two readings apart"
        found.append(Problem("train.r_drop", rule, config.train.r_drop))
    if config.train.patience and config.train.select == "last":
        found.append(Problem("train.patience", "be null with train.select=last", config.train.patience))
    return found


def replica_problems(config: TrainConfig) -> list[Problem]:
    """Of a training that several devices share, chosen so (`strategy=mirrored`, `multi_worker`) or found so."""
    found = []
    if config.weighting.kind != "static":
        found.append(Problem("weighting", "be static on several devices", config.weighting.kind, ("static",)))
    return found


def _of_exits(config: TrainConfig) -> list[Problem]:
    """Of heads between the layers; the model's last layer is known where its sizes are."""
    exits = config.model.exits
    if not exits:
        return []
    found = []
    if exits != sorted(set(exits)):
        found.append(Problem("model.exits", "name each layer once, the lowest first", exits))
    for name, task in config.tasks.items():
        for head, settings in task.heads.items():
            key = f"tasks.{name}.heads.{head}"
            if settings.kind != "classification":
                rule = "be classification with model.exits"
                found.append(Problem(f"{key}.kind", rule, settings.kind, ("classification",)))
            elif settings.share_head is not None:
                rule = "be null with model.exits, where each head has layers of its own"
                found.append(Problem(f"{key}.share_head", rule, settings.share_head))
    return found


def _of_task(name: str, task: TaskConfig, data: DataConfig) -> list[Problem]:
    key, found = f"tasks.{name}", []
    if data.source not in task.sources:
        found.append(Problem("data", f"be a source that task {name} has", data.source, tuple(task.sources)))
    for head, config in task.heads.items():
        found += [Problem(f"{key}.heads.{head}.{part}", rule, value) for part, rule, value in config.faults()]
        if head in RESERVED or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", head):
            rule = f"have names of letters, digits, '_', '.' and '-', and not {', '.join(RESERVED)}"
            found.append(Problem(f"{key}.heads", rule, head))
        kind = KINDS[config.kind]
        if kind.level == "mask" and len(task.heads) > 1:  # it would hide words from the other heads
            found.append(Problem(f"{key}.heads.{head}", "be the only head of its task, as it hides words", kind.kind))
        if kind.separate and len(task.heads) > 1:
            found.append(Problem(f"{key}.heads.{head}", "be the only head of its task, of texts apart", kind.kind))
    fields = (*RESERVED, *task.heads)
    for source_name, source in task.sources.items():
        rule, key_of_source = "name known fields", f"{key}.sources.{source_name}.columns"
        found += [Problem(key_of_source, rule, field, fields) for field in source.columns if field not in fields]
        single = [(head, config.kind) for head, config in task.heads.items() if KINDS[config.kind].level != "text"]
        if single and "text_b" in source.columns:
            rule = f"have no text_b beside {single[0][0]}, of kind {single[0][1]}, which reads single texts"
            found.append(Problem(key_of_source, rule, source.columns["text_b"]))
    return found


def _of_names(tasks: Mapping[str, TaskConfig]) -> list[Problem]:
    """Of heads beside those of other tasks: names that meet, layers that cannot be shared."""
    found: list[Problem] = []
    named: dict[str, HeadSettings] = {}
    keys = {(task, head): f"tasks.{task}.heads.{head}" for task, settings in tasks.items() for head in settings.heads}
    for (task, head), key in keys.items():
        name = full_name(task, head)
        if name in named:
            found.append(Problem(key, "have another full name (<task>_<head>) than all other heads", name))
        named[name] = tasks[task].heads[head]
    owners = {full_name(task, head): task for task, head in keys}
    for (task, head), key in keys.items():
        found += _of_sharing(f"{key}.share_head", full_name(task, head), named)
        config, trainable = tasks[task].heads[head], tasks[task].trainable
        owner = owners.get(config.share_head or "", task)
        # The shared layer reads the word embeddings, which one of the two tasks may change and the other may not.
        if KINDS[config.kind].level == "mask" and tasks[owner].trainable != trainable:
            rule = f"name a head of a task with the same trainable ({trainable})"
            found.append(Problem(f"{key}.share_head", rule, config.share_head))
    return found


def _of_sharing(key: str, name: str, heads: Mapping[str, HeadSettings]) -> list[Problem]:
    """Of the head `name` taking its layer from the head it names, if any."""
    own, other = heads[name], heads[name].share_head
    if other is None:
        rule = "name the head whose teachers tell it what it has no labels for"
        return [] if own.labelled else [Problem(key, rule, other, [head for head in heads if head != name])]
    if other not in heads or other == name:
        return [Problem(key, "name another head of this run", other, [head for head in heads if head != name])]
    if heads[other].share_head is not None:
        return [Problem(key, "name a head that has a layer of its own", other)]
    keys = ["kind", *own.layer_keys]
    alike = [
        head
        for head, config in heads.items()
        if head != name
        and config.share_head is None
        and all(getattr(own, key) == getattr(config, key, None) for key in keys)
    ]
    if other not in alike:
        return [Problem(key, f"name a head with the same {' and '.join(keys)}", other, alike or [None])]
    return []
