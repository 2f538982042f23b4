"""The peer: PyTorch and transformers at their fastest, on examples that `benchmarks.train_ours` wrote.

    python -m benchmarks.peers.torch_trainer <request.json>

* On a GPU: transformers' BertModel with SDPA, bfloat16 autocast over float32 weights, fused AdamW, linear schedule,
  clipping to 1. Examples are grouped by length as `group_by_length` does (megabatches of 50 batches) and padded to a
  multiple of 8; batches are made beforehand and copied from pinned memory. Eager and compiled (`torch.compile` as it
  comes) are both timed over all batches, after a pass over all of them, so that no compilation is within.
* `trainer`: transformers' Trainer (`benchmarks.peers.hf_trainer`), as most would do it.

Dropout is 0.1, on attention weights 0: as ours has it. Of several tasks every batch is of one, in proportion to their
sizes: the encoder's work is that of mixed batches, and only one task's heads run. Of masked language, the library's own
model would compute logits of all tokens; this one takes masked ones alone, as ours does.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertModel

from benchmarks.peers.grouping import grouped_by_task, padded

MEGABATCH = 50  # batches, as in transformers.trainer_pt_utils.LengthGroupedSampler
MASK, SPECIAL = 103, 1000  # of BERT's uncased vocabulary: [MASK], and the ids below which no word is
Batch = dict[str, torch.Tensor]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(1)
    examples = dict(np.load(request["examples"]))
    if request["trainer"]:
        from benchmarks.peers.hf_trainer import time_trainer

        found = time_trainer(bert_config(request), examples, request, wait_for_turn)
        found["peak_flops"] = peak_flops(torch.device("cpu"))
    else:
        found = time_variants(examples, request)
    versions = {name: version(name) for name in ("torch", "transformers")}
    Path(request["out"]).write_text(json.dumps(found | {"versions": versions}))


def time_variants(examples: dict[str, np.ndarray], request: dict) -> dict:
    """What the faster of eager and compiled took, and both ones' seconds."""
    device = torch.device("cuda" if request["gpu"] else "cpu")
    torch.set_float32_matmul_precision("high" if request["gpu"] else "highest")
    batches, order = make_batches(examples, request)
    loss = MultiTask(bert_config(request), examples, request["pooling"]).to(device).train()
    optimizer = torch.optim.AdamW(loss.parameters(), 1e-4, weight_decay=0.01, fused=True)
    steps = {name: Step(loss, optimizer, name, device) for name in request["variants"]}
    warm = {name: seconds_of(partial(step.all, batches), device) for name, step in steps.items()}
    peak_flops(device)
    wait_for_turn()
    peak, taken, memory = peak_flops(device), {}, {}
    for name, step in steps.items():
        step.all(batches[: request["settle"]])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken[name] = seconds_of(partial(step.all, batches), device)
        memory[name] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    best = min(taken, key=taken.__getitem__)
    lengths = examples["lengths"][np.concatenate(order)]
    masked = sum(int((batch["labels"] >= 0).sum()) for batch in batches if "places" in batch)
    return {
        "seconds": taken[best],
        "steps": len(batches),
        "work": [int(lengths.sum()), int((lengths**2).sum()), masked],
        "compile_seconds": max(warm[best] - taken[best], 0),
        "peak_flops": peak,
        "memory": memory[best],
        "fill": int(lengths.sum()) / sum(batch["ids"].numel() for batch in batches),
        "variant": best,
        "variants": taken,
    }


class MultiTask(nn.Module):
    """The loss of a batch: an encoder, and a linear layer for each head (BERT's own for masked words)."""

    def __init__(self, config: BertConfig, examples: dict[str, np.ndarray], pooling: str):
        super().__init__()
        if examples["masked"]:
            model = BertForMaskedLM._from_config(config, attn_implementation="sdpa")
            self.bert, self.words = model.bert, model.cls
        else:
            self.bert = BertModel._from_config(config, attn_implementation="sdpa", add_pooling_layer=pooling == "cls")
        self.pooling, self.dropout, heads = pooling, nn.Dropout(0.1), {}
        for name, labels in examples.items():
            if name.startswith(("text.", "token.")):
                outputs = labels.shape[1] if labels.ndim > 1 else int(labels.max()) + 1
                heads[name.replace(".", "_")] = nn.Linear(config.hidden_size, outputs)
        self.heads = nn.ModuleDict(heads)

    def forward(self, batch: Batch) -> torch.Tensor:
        found = self.bert(input_ids=batch["ids"], attention_mask=batch["mask"])
        states = found.last_hidden_state
        if "places" in batch:
            logits = self.words(states.flatten(0, 1)[batch["places"]])
            return functional.cross_entropy(logits.float(), batch["labels"])
        total = states.new_zeros((), dtype=torch.float32)
        for name in (key for key in batch if key.startswith(("text_", "token_"))):
            if name.startswith("text_"):
                seen = found.pooler_output if self.pooling == "cls" else mean_states(states, batch["mask"])
            else:
                seen = states
            logits, labels = self.heads[name](self.dropout(seen)).float(), batch[name]
            if labels.is_floating_point():  # several labels of a text
                total = total + functional.binary_cross_entropy_with_logits(logits, labels)
            else:
                total = total + functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-1)
        return total


def mean_states(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


class Step:
    """Training steps of one variant."""

    def __init__(self, loss: MultiTask, optimizer: torch.optim.Optimizer, variant: str, device: torch.device):
        self.parameters, self.device, self.optimizer = list(loss.parameters()), device, optimizer
        self.loss: Callable[[Batch], torch.Tensor] = loss
        if variant == "compiled":
            # Of several tasks the heads differ from batch to batch; they are small and stay eager.
            self.loss = torch.compile(loss) if len(loss.heads) < 2 else with_compiled_encoder(loss)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 10_000))

    def all(self, batches: list[Batch]) -> None:
        for batch in batches:
            there = {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.loss(there)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)


def with_compiled_encoder(loss: MultiTask) -> Callable[[Batch], torch.Tensor]:
    eager, compiled = loss.bert, torch.compile(loss.bert)

    def forward(batch: Batch) -> torch.Tensor:
        loss.bert = compiled
        try:
            return loss(batch)
        finally:
            loss.bert = eager

    return forward


def make_batches(examples: dict[str, np.ndarray], request: dict) -> tuple[list[Batch], list[np.ndarray]]:
    """Padded batches in pinned memory, and the examples of each."""
    random, lengths = np.random.default_rng(1), examples["lengths"]
    splits = np.concatenate([[0], np.cumsum(lengths)])
    order = grouped_by_task(lengths, examples["task"], request["batch"], MEGABATCH, random)
    batches = []
    for chosen in order:
        ids = padded(examples["token_ids"], splits, chosen, 8, 0)
        arrays = {"ids": ids, "mask": (ids > 0).astype(np.int64)}
        if examples["masked"]:
            arrays |= masked_words(ids, random)
        for name, labels in examples.items():
            if name.startswith("token."):
                values = padded(labels, splits, chosen, 8, -1)
            elif name.startswith("text."):
                values = labels[chosen]
            else:
                continue
            if values.max() >= 0:  # else the batch is of another task
                several = name.startswith("text.") and values.ndim > 1
                arrays[name.replace(".", "_")] = values.astype(np.float32 if several else np.int64)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
        batches.append({name: t.pin_memory() if request["gpu"] else t for name, t in tensors.items()})
    return batches, order


def masked_words(ids: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """15 % of the tokens are to be guessed, 80 % of them behind [MASK], 10 % behind another token."""
    places = np.flatnonzero(ids.ravel() >= SPECIAL)
    places = np.sort(random.choice(places, round(0.15 * len(places)), replace=False))
    labels, hidden, dice = ids.ravel()[places], ids.copy(), random.random(len(places))
    others = random.integers(SPECIAL, 30_522, len(places))
    hidden.ravel()[places] = np.select([dice < 0.8, dice < 0.9], [MASK, others], labels)
    return {"ids": hidden, "places": places, "labels": labels.astype(np.int64)}


def bert_config(request: dict) -> BertConfig:
    layers, hidden, heads, intermediate, vocabulary = request["sizes"]
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
    )


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a large matrix product, the best of a few: 8,192³ in bfloat16 on a GPU, 2,048³ in float32 on a CPU."""
    size, times, dtype = (8192, 20, torch.bfloat16) if device.type == "cuda" else (2048, 4, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype) * size**-0.5

    def products() -> None:
        product = a
        for _ in range(times):
            product = product @ a

    a @ a
    return times * 2 * size**3 / min(seconds_of(products, device) for _ in range(5))


def wait_for_turn() -> None:
    """Tells the parent process that all is compiled, and waits until it says go."""
    print("READY", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
