"""transformers' Trainer on classified texts, in float32 on the CPU: what most would take.

The model is BertForSequenceClassification, each batch padded to its longest text. `group_by_length` draws megabatches
of 50 batches and sorts them; the examples are one such megabatch, of at most 50 batches, given in that order, so that
few steps are as well grouped as a long training's. Without the variant `grouped` the order is random. Time runs from
the first step to the end of the last one.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from benchmarks.peers.grouping import grouped

MEGABATCH = 50


class Clock(TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not hasattr(self, "begin"):
            self.begin, self.processor = time.perf_counter(), -time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.end, self.processor_end = time.perf_counter(), time.process_time()


class Ordered(Trainer):
    """Takes the examples in their order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


def time_trainer(
    config: BertConfig, examples: dict[str, np.ndarray], request: dict, wait_for_turn: Callable[[], None]
) -> dict:
    """Seconds and work of an epoch of the examples."""
    lengths, batch = examples["lengths"], request["batch"]
    labels = next(values for name, values in examples.items() if name.startswith("text."))
    texts = np.split(examples["token_ids"], np.cumsum(lengths)[:-1])
    megabatch = MEGABATCH if "grouped" in request["variants"] else 1
    batches = grouped(lengths, batch, megabatch, np.random.default_rng(1))
    order = np.concatenate(batches)
    rows = [{"input_ids": texts[i].tolist(), "labels": int(labels[i])} for i in order]
    config.num_labels = int(labels.max()) + 1
    model, clock = BertForSequenceClassification._from_config(config, attn_implementation="sdpa"), Clock()
    for _ in range(2):  # first uses of the library's kernels
        model(**collated(rows[-batch:])).loss.backward()
    model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=1e-4,
            weight_decay=0.01,
            max_grad_norm=1.0,
            warmup_steps=2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Ordered(model=model, args=arguments, train_dataset=rows, data_collator=collated, callbacks=[clock])
        wait_for_turn()
        trainer.train()
    seen = lengths[order]
    return {
        "seconds": clock.end - clock.begin,
        "processor_seconds": clock.processor + clock.processor_end,
        "steps": trainer.state.global_step,
        "work": [int(seen.sum()), int((seen**2).sum()), 0],
        "compile_seconds": 0.0,
        "fill": int(seen.sum()) / sum(int(lengths[chosen].max()) * len(chosen) for chosen in batches),
        "memory": None,
    }


def collated(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Texts padded to the longest one."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}
