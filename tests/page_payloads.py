"""What a report and a comparison show, made up but like the real: five tasks, six heads, losses that fall."""

import random
from collections.abc import Sequence
from typing import Any

EMOTIONS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
).split()
QUESTIONS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
INTENTS = "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent".split()
SLOTS = ["artist", "city", "object_name", "party_size_number", "playlist", "timeRange"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \U0001f3ac"
WORDS = (
    "the plot never quite finds its feet but a warm performance from the lead carries every scene and I left the "
    "cinema smiling although the score was loud and the ending felt borrowed from a better film"
).split()


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def confusion(rng: random.Random, totals: Sequence[int], share: float) -> list[list[int]]:
    """Counts of which about `share` lie on the diagonal."""
    table = []
    for true, total in enumerate(totals):
        row = [0] * len(totals)
        for _ in range(total):
            near = (true + rng.choice((1, 1, 1, 2, 3))) % len(totals)
            row[true if rng.random() < share else near] += 1
        table.append(row)
    return table


def precision_recall(labels: Sequence[str], level: float) -> dict[str, dict[str, list[float]]]:
    steps = [step / 20 for step in range(21)]
    return {
        label: {
            "recall": steps,
            "precision": [round(1 - (1 - level) * recall**2 - place / len(labels) / 4 * recall, 4) for recall in steps],
        }
        for place, label in enumerate(labels)
    }


def calibration(gap: float) -> list[dict[str, float]]:
    return [
        {"confidence": (0.5 + place) / 15, "accuracy": max(0, (0.5 + place) / 15 - gap), "examples": 4 + place**3}
        for place in range(7, 15)
    ]


def classification(labels: Sequence[str], totals: Sequence[int], share: float, errors: int, seed: int) -> dict:
    rng = random.Random(seed)
    table = confusion(rng, totals, share)
    right = sum(row[place] for place, row in enumerate(table))
    accuracy = right / sum(totals)
    wrong = [
        (true, other)
        for true in range(len(labels))
        for other in range(len(labels))
        for _ in range(table[true][other])
        if true != other
    ]
    rng.shuffle(wrong)
    sure = sorted((rng.uniform(0.5, 1) for _ in range(errors)), reverse=True)
    listed = [
        {
            "text": sentence(rng, rng.randrange(4, 120)),
            "label": labels[true],
            "predicted": labels[other],
            "probability": probability,
        }
        for (true, other), probability in zip(wrong, sure, strict=False)
    ]
    return {
        "kind": "classification",
        "metric": "accuracy",
        "examples": sum(totals),
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.01,
        "matthews": 2 * accuracy - 1,
        "loss": 0.41,
        "auc": 0.5 + accuracy / 2,
        "ece": 0.041,
        "labels": list(labels),
        "confusion": table,
        "by_length": [
            {"up_to": up_to, "examples": sum(totals) // 4, "accuracy": accuracy + gain}
            for up_to, gain in ((74, 0.03), (139, 0.01), (211, -0.01), (512, -0.03))
        ],
        "curves": {
            "calibration": calibration(0.06),
            "precision_recall": precision_recall(labels, accuracy),
            "confidences": {
                "right": [0] * 10 + [place**3 for place in range(10)],
                "wrong": [0] * 10 + [1 + place for place in range(10)],
            },
        },
        "errors": listed,
    }


def multilabel(errors: int, seed: int) -> dict:
    rng = random.Random(seed)
    listed = [
        {
            "text": sentence(rng, 14),
            "labels": rng.sample(EMOTIONS, place % 3),
            "predicted": rng.sample(EMOTIONS, 1 + place % 2),
        }
        | {"probability": 1 - place / 500}
        for place in range(errors)
    ]
    return {
        "kind": "multilabel",
        "metric": "macro_f1",
        "examples": 5427,
        "macro_f1": 0.5131,
        "micro_f1": 0.5874,
        "exact_match": 0.4519,
        "loss": 2.31,
        "by_length": [{"up_to": 8 + 8 * place, "examples": 1356, "macro_f1": 0.5 + place / 50} for place in range(4)],
        "curves": {"precision_recall": precision_recall(EMOTIONS, 0.5), "calibration": calibration(0.02)},
        "errors": listed,
    }


def tagging(errors: int) -> dict:
    text = "\U0001f3ac\U0001f3ac book a table for two in Boston"
    two, boston = text.index("two"), text.index("Boston")
    given = [
        {"type": "party_size_number", "start": two, "end": two + 3, "text": "two"},
        {"type": "city", "start": boston, "end": boston + 6, "text": "Boston"},
    ]
    found = [{"type": "object_name", "start": boston, "end": boston + 6, "text": "Boston", "score": 0.71}]
    types = {
        kind: {"f1": 0.98 - place / 12, "precision": 0.97 - place / 11, "recall": 0.99 - place / 13}
        for place, kind in enumerate(SLOTS)
    }
    return {
        "kind": "tagging",
        "metric": "f1",
        "examples": 700,
        "f1": 0.9512,
        "precision": 0.9488,
        "recall": 0.9536,
        "accuracy": 0.9811,
        "loss": 0.09,
        "by_length": [{"up_to": 7 + 3 * place, "examples": 175, "f1": 0.96 - place / 80} for place in range(4)],
        "curves": {
            "by_type": {
                kind: scores | {"examples": 240 - 30 * place} for place, (kind, scores) in enumerate(types.items())
            }
        },
        "errors": [{"text": text, "spans": given, "predicted": found}] * errors,
    }


def regression(errors: int, seed: int) -> dict:
    rng = random.Random(seed)
    labels = [round(rng.uniform(0, 5), 1) for _ in range(400)]
    listed = [
        {"text": sentence(rng, 9), "text_b": sentence(rng, 8), "label": label, "predicted": label + 1.5 - place / 100}
        for place, label in enumerate(labels[:errors])
    ]
    return {
        "kind": "regression",
        "metric": "spearman",
        "examples": 1379,
        "pearson": 0.8541,
        "spearman": 0.8466,
        "mse": 0.6124,
        "loss": 0.27,
        "by_length": [{"up_to": 20 + 9 * place, "examples": 345, "spearman": 0.86 - place / 60} for place in range(4)],
        "curves": {"scatter": [[label, min(5, max(0, rng.gauss(label, 0.6)))] for label in labels]},
        "errors": listed,
    }


def history(heads: dict[str, dict], epochs: int, steps: int, every: int = 10) -> list[dict]:
    rng = random.Random(3)
    lines: list[dict] = []
    total = epochs * steps
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * steps + every, epoch * steps + 1, every):
            losses = {
                f"{head['path']}/loss": (0.2 + place / 9 + (1 + place / 3) * 0.5 ** (6 * step / total))
                * rng.uniform(0.85, 1.15)
                for place, head in enumerate(heads.values())
            }
            rate = 1e-4 * min(step / (total / 10), (total - step) / (total * 0.9))
            speed = {"speed/tokens_per_second": rng.gauss(41_000, 900), "speed/mfu": rng.gauss(0.31, 0.005)}
            norms = {"optimizer/learning_rate": rate, "optimizer/gradient_norm": rng.uniform(0.6, 1.6)}
            lines.append(
                {"step": step, "epoch": step / steps, "loss": sum(losses.values()), **losses, **norms, **speed}
            )
        done: dict[str, Any] = {
            "step": epoch * steps,
            "epoch": epoch,
            "seconds": 192.4,
            "epoch_loss": 3 / epoch,
            "score": 0.8 - 0.1 / epoch,
        }
        for head in heads.values():
            best = head["parts"]["dev"].get(head["metric"], 0.5)
            done |= {
                f"{head['path']}/epoch_loss": 1 / epoch,
                f"{head['path']}/dev_{head['metric']}": best - 0.2 * 0.4**epoch,
                f"{head['path']}/dev_loss": 0.3 + 0.5 / epoch,
            }
            done[f"mixing/{head['task']}"] = 1 / len(heads) + epoch / 100
        if "imdb" in heads:
            done["imdb/exit2/dev_accuracy"] = 0.8 - 0.2 * 0.4**epoch
        lines.append(done)
    return lines


def report(errors: int = 120, epochs: int = 3) -> dict:
    """The report of five tasks."""

    def head(task: str, path: str, made: Any) -> dict:
        parts = {"dev": made(0), "test": made(1)}
        return {
            "task": task,
            "kind": parts["dev"]["kind"],
            "path": path,
            "metric": parts["dev"]["metric"],
            "parts": parts,
        }

    heads = {
        "imdb": head(
            "imdb", "imdb", lambda at: classification(["neg", "pos"], [500, 500 + 100 * at], 0.86, errors, at)
        ),
        "trec": head(
            "trec", "trec", lambda at: classification(QUESTIONS, [9, 138, 94, 65, 81, 113], 0.92, errors, 2 + at)
        ),
        "goemotions": head("goemotions", "goemotions", lambda at: multilabel(errors, 4 + at)),
        "snips_intent": head(
            "snips", "snips/intent", lambda at: classification(INTENTS, [100] * 7, 0.98, errors, 6 + at)
        ),
        "snips_slots": head("snips", "snips/slots", lambda at: tagging(12 * at)),
        "stsb": head("stsb", "stsb", lambda at: regression(errors, 8 + at)),
    }
    heads["imdb"]["parts"]["test"]["errors"][0]["text"] = HOSTILE
    counts = {
        "imdb": {"imdb": {"neg": 980, "pos": 1020}},
        "goemotions": {"goemotions": {name: 4000 // (1 + place) for place, name in enumerate(EMOTIONS)}},
        "snips": {
            "snips_intent": dict.fromkeys(INTENTS, 1800),
            "snips_slots": {name: 900 - 90 * i for i, name in enumerate(SLOTS)},
        },
    }
    bell = [12, 90, 260, 410, 420, 320, 210, 140, 90, 60, 40, 30, 20, 12, 8, 20]

    def about(task: str) -> dict:
        parts = {
            part: {
                "examples": size,
                "truncated": None if part == "dev" else size // 30,
                "labels": {
                    name: {label: n * size // 2000 for label, n in of.items()}
                    for name, of in counts.get(task, {}).items()
                },
            }
            for part, size in (("train", 2000), ("dev", 1000), ("test", 1100))
        }
        lengths = {
            "edges": list(range(0, 544, 32))[:17],
            "limit": 256,
            "train": bell,
            "dev": bell[::-1],
            "test": [n // 2 for n in bell],
        }
        link = "https://example.org/" + task
        return {
            "source": f"built-in sample of {task}",
            "license": "CC BY 4.0",
            "link": link,
            "fingerprint": "9f2c" * 16,
            "parts": parts,
            "lengths": lengths,
        }

    exit_parts = {
        part: {"kind": "classification", "metric": "accuracy", "examples": 1000, "accuracy": 0.79}
        for part in ("dev", "test")
    }
    return {
        "run": {
            "name": "five-tasks-7b1f",
            "folder": "runs/five-tasks-7b1f",
            "tasks": ["imdb", "trec", "goemotions", "snips", "stsb"],
            "data": "sample",
            "seed": 7,
            "started": "2025-11-28T14:31:07+00:00",
            "git": {"commit": "16eb58b0c1d2e3f4a5b6c7d8e9f0", "dirty": True},
            "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
            "machine": {"cpu": "x86", "cores": 2, "gpus": []},
            "seconds": 577.2,
            "steps": 400 * epochs,
            "epochs": epochs,
            "best_epoch": min(2, epochs),
            "parameters": 22_713_216,
        },
        "commands": [
            {
                "what": "Train it again",
                "command": "python -m bert_mtl.train task=[imdb,trec,goemotions,snips,stsb] seed=7 train.epochs=3",
            },
            {"what": "Evaluate it", "command": "python -m bert_mtl.evaluate run=runs/five-tasks-7b1f"},
        ],
        "config": "seed: 7\ntrain:\n  epochs: 3\n  batch_size: 32\n",
        "history": history(heads, epochs, 400),
        "heads": heads,
        "exits": {"imdb@2": {"parts": exit_parts}},
        "data": {task: about(task) for task in ("imdb", "trec", "goemotions", "snips", "stsb")},
        "packing": {
            "rows": 17,
            "row_length": 512,
            "fill": 0.991,
            "steps": 400,
            "examples_per_step": 31.8,
            "kind": "packed",
        },
        "warnings": [],
    }


def compare(disagreements: int = 130) -> dict:
    """The comparison of three groups of runs."""
    rng = random.Random(1)
    names = ["alone", "together", "taught"]

    def scores(mean: float, deviation: float | None = 0.0042) -> dict:
        return {
            "mean": mean,
            "deviation": deviation,
            "values": [mean - 0.004, mean, mean + 0.004] if deviation else [mean],
        }

    def against(difference: float, verdict: str, p: float, mcnemar: bool = True) -> dict:
        test = {"only_baseline": 61, "only_this": 104, "p": p, "p_adjusted": min(1.0, 4 * p)}
        return {
            "difference": difference,
            "low": difference - 0.009,
            "high": difference + 0.008,
            "p": p,
            "p_adjusted": min(1.0, 4 * p),
            "mcnemar": test if mcnemar else None,
            "examples": 1100,
            "verdict": verdict,
        }

    listed = []
    for place in range(disagreements):
        right = [(True, False, True), (False, True, True), (False, False, True), (True, True, False)][place % 4]
        listed.append(
            {
                "text": sentence(rng, 30) if place else HOSTILE,
                "label": "pos",
                "answers": ["pos" if each else "neg" for each in right],
                "right": list(right),
            }
        )
    heads = {
        "imdb": {
            "kind": "classification",
            "metric": "accuracy",
            "higher_is_better": True,
            "scores": [scores(0.9236), scores(0.9140, 0.0021), scores(0.9353, 0.0012)],
            "against": [against(-0.0096, "worse", 0.0004), against(0.0117, "better", 0.008)],
            "baseline": 0,
            "disagreements": listed,
        },
        "snips_slots": {
            "kind": "tagging",
            "metric": "f1",
            "higher_is_better": True,
            "scores": [scores(0.9548), scores(0.9550), scores(0.9518)],
            "against": [
                against(0.0002, "no difference shown", 0.81, False),
                against(-0.003, "no difference shown", 0.31, False),
            ],
            "baseline": 0,
            "disagreements": [],
        },
        "stsb": {
            "kind": "regression",
            "metric": "spearman",
            "higher_is_better": True,
            "scores": [scores(0.8521, None), scores(0.8528, None), {"mean": None, "deviation": None, "values": []}],
            "against": [against(0.0007, "no difference shown", 0.64, False), None],
            "baseline": 0,
            "disagreements": [],
        },
    }

    def line(level: float, falls: bool) -> list[list[float]]:
        return [[step, level + (0.9 if falls else -0.3) * 0.5 ** (step / 150)] for step in range(100, 1300, 100)]

    differs = [{}, {"task": "[imdb,snips,stsb]"}, {"task": "[imdb,snips,stsb]", "distill.weight": "0.5"}]
    return {
        "part": "test",
        "groups": [
            {
                "name": name,
                "differs": differs[at],
                "runs": [
                    {
                        "name": f"{name}-{seed}",
                        "folder": f"runs/{name}-{seed}",
                        "seed": seed,
                        "started": "2025-11-28T14:31:07",
                        "seconds": 300.0,
                    }
                    for seed in (1, 2, 3)
                ],
            }
            for at, name in enumerate(names)
        ],
        "heads": heads,
        "curves": {
            name: [line(level + at / 50, "loss" in name) for at in range(3)]
            for name, level in (
                ("imdb/dev_accuracy", 0.9),
                ("snips/slots/dev_f1", 0.93),
                ("stsb/dev_spearman", 0.83),
                ("imdb/loss", 0.2),
                ("imdb/dev_macro_f1", 0.9),
            )
        },
        "speed": [{"tokens_per_second": 40_000.0 - 700 * at, "seconds": 300.0 + 90 * at} for at in range(3)],
        "configs": {"task": ["imdb", "[imdb,snips,stsb]", "[imdb,snips,stsb]"], "distill.weight": ["0", "0", "0.5"]},
        "notes": ["Answers to stsb are missing in the runs of taught."],
    }
