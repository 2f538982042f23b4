"""A bundle's manifest in, its README.md out: a model card in Markdown, with the front matter of Hugging Face's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

ANSWERS = {
    "classification": "one label",
    "multilabel": "any number of labels",
    "regression": "a number",
    "tagging": "spans and their types",
    "mlm": "the words at each [MASK]",
    "similarity": "how alike two texts are, or a text's vector",
    "vector": "a vector",
}
PIPELINES = {
    "tagging": "token-classification",
    "mlm": "fill-mask",
    "similarity": "sentence-similarity",
    "vector": "feature-extraction",
}  # of Hugging Face's; all others are text-classification
SAMPLE = (
    "**Learned from the built-in sample**: a few hundred to a few thousand examples for trying things out, neither the "
    "published data nor a measure of what the method reaches."
)
TRUNCATIONS = {
    "head": "its start is read",
    "tail": "its end is read",
    "head_tail": "a quarter is read from its start and the rest from its end",
}


def model_card(manifest: Mapping[str, Any]) -> str:
    """The card of a bundle whose manifest.json says `manifest`. It names neither a language nor a licence of the
    weights: the manifest knows none."""
    sections = [
        f"---\n{yaml.safe_dump(front_matter(manifest), sort_keys=False, allow_unicode=True)}---",
        f"# {manifest['name']}",
        _introduction(manifest),
        "## What it answers",
        _heads(manifest),
        "## Data",
        _data(manifest),
        "## Training",
        _training(manifest["training"], manifest["tokenizer"]),
        "## Metrics",
        _metrics(manifest["metrics"]),
        "## What each format costs",
        _gates(manifest),
        "## Calibration",
        _calibration(manifest),
        "## How to serve and ask it",
        _use(manifest),
        "## Limits",
        _limits(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of Hugging Face's model cards; `model-index` holds the metrics of the test part, of dev where there are
    none."""
    part = "test" if manifest["metrics"]["test"] else "dev"
    results = [
        {
            "task": {"type": PIPELINES.get(head["kind"], "text-classification"), "name": head["kind"]},
            "dataset": {"name": head["task"], "type": head["task"], "config": manifest["data"], "split": part},
            "metrics": [{"type": name, "value": value, "name": f"{part} {name}"} for name, value in values.items()],
        }
        for name, head in manifest["heads"].items()
        if (values := manifest["metrics"][part].get(name))
    ]
    return {
        "pipeline_tag": PIPELINES.get(next(iter(_kinds(manifest))), "text-classification"),
        "library_name": "tensorflow",
        "tags": ["bert", "multi-task", *manifest["engines"], *dict.fromkeys(_kinds(manifest))],
        **({"model-index": [{"name": manifest["name"], "results": results}]} if results else {}),
    }


def _kinds(manifest: Mapping[str, Any]) -> list[str]:
    return [head["kind"] for head in manifest["heads"].values()]


def _introduction(manifest: Mapping[str, Any]) -> str:
    count, tasks = len(manifest["heads"]), len(manifest["tasks"])
    return (
        f"One BERT encoder that answers {_counted(count, 'question')} about a text, of {_counted(tasks, 'task')}. "
        f"Version `{manifest['version']}`, written by bert_mtl {manifest['versions']['bert_mtl']}."
    )


def _heads(manifest: Mapping[str, Any]) -> str:
    rows = []
    for name, head in manifest["heads"].items():
        reads = "two texts" if head["reads"] in ("pair", "apart") else "a text"
        labels = head.get("labels") or head.get("tags") or []
        said = ANSWERS.get(head["kind"], head["kind"])
        rows.append([f"`{name}`", head["task"], reads, said, ", ".join(f"`{label}`" for label in labels)])
    return _table(["head", "task", "reads", "answers", "labels"], rows)


def _data(manifest: Mapping[str, Any]) -> str:
    rows = [
        [name, task["license"], task["link"] or "", task["limit"] or "all", f"`{task['fingerprint'][:12]}`"]
        for name, task in manifest["tasks"].items()
    ]
    table = _table(["task", "terms of the published data", "link", "train examples at most", "fingerprint"], rows)
    source = SAMPLE if manifest["data"] == "sample" else "Learned from the full data (`data=full`)."
    return f"{source}\n\n{table}"


def _training(training: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    words = {
        "pretrained weights": f"`{training['weights']}`" if training["weights"] else "none: random ones",
        "epochs": training["epochs"],
        "examples a step": training["batch_size"],
        "highest learning rate": training["learning_rate"],
        "seed": training["seed"],
        "mixing of tasks": training["mixing"],
        "weighting of losses": training["weighting"],
        "tokens of a text at most": tokenizer["max_length"],
    }
    return "\n".join(f"* {key}: {value}" for key, value in words.items())


def _metrics(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    rows = [
        [f"`{head}`", name, *(_number(metrics[part].get(head, {}).get(name)) for part in ("dev", "test"))]
        for head in dict.fromkeys([*metrics["dev"], *metrics["test"]])
        for name in dict.fromkeys([*metrics["dev"].get(head, {}), *metrics["test"].get(head, {})])
    ]
    return _table(["head", "metric", "dev", "test"], rows) if rows else "None were measured."


def _gates(manifest: Mapping[str, Any]) -> str:
    precisions = {name: files["precision"] for name, files in manifest["engines"].items()}
    if not manifest["gates"]:
        formats = ", ".join(f"{name} ({precision})" for name, precision in precisions.items())
        return f"Not compared with the run when this was exported. Formats: {formats}."
    rows = [
        [name, precisions[name], f"`{head}`", f"{found['drop']:.2f}", f"{found['agreement']:.2%}",
         f"{found['difference']:.4f}", _answered(found.get("exits"))]
        for name, heads in manifest["gates"].items()
        for head, found in heads.items()
    ]  # fmt: skip
    columns = [
        "format",
        "precision",
        "head",
        "points lost",
        "answers alike",
        "largest difference",
        "answers with exits",
    ]
    return f"On dev, beside the run in float32 and by the server's own engines.\n\n{_table(columns, rows)}"


def _answered(exits: Mapping[str, Any] | None) -> str:
    if exits is None:
        return "–"
    places = ", ".join(f"layer {depth}: {share:.1%}" for depth, share in exits["answered"].items())
    return f"{places}; {exits['drop']:.2f} points lost in all"


def _calibration(manifest: Mapping[str, Any]) -> str:
    rows = []
    for name, files in manifest["engines"].items():
        for head, gate in manifest["gates"].get(name, {}).items():
            if found := gate.get("calibration"):
                temperatures = [f"{stage['temperature'][head]:.3f}" for stage in files["stages"]]
                errors = [f"{found[key]:.4f}" for key in ("ece_before", "ece_after")]
                rows.append([name, f"`{head}`", ", ".join(temperatures), *errors, found["texts"]])
    if not rows:
        return "Probabilities are the model's own: no temperature was fitted."
    return (
        "The server divides the logits of these heads by a temperature fitted on dev (Guo et al. 2017), one for each "
        "exit. The expected calibration error (15 bins) with it is that of each half of dev with the temperatures of "
        "the other half. Numbers of the model files themselves, and of other heads, are as they were learned.\n\n"
        + _table(["format", "head", "temperature", "error without", "error with", "texts"], rows)
    )


def _use(manifest: Mapping[str, Any]) -> str:
    alone = any(head["reads"] != "pair" for head in manifest["heads"].values())
    texts = '{"texts": ["What a wonderful film!"]}'
    body = texts if alone else f'{texts[:-1]}, "texts_b": ["I liked it."]}}'
    lines = [
        "python -m serving.server bundle=<this folder> http.port=8000",
        f"curl -X POST localhost:8000/classify -H 'content-type: application/json' -d '{body}'",
    ]
    found = "```bash\n" + "\n".join(lines) + "\n```"
    if "savedmodel" in manifest["engines"]:
        found += (
            "\n\n`saved_model/` is for TensorFlow Serving as well: it takes texts as they are (signature "
            "`serving_default`) and holds requests to warm up with."
        )
    return found


def _limits(manifest: Mapping[str, Any]) -> str:
    tokenizer, found = manifest["tokenizer"], []
    if manifest["data"] == "sample":
        found.append("It has seen the built-in sample alone: do not judge by it, and do not rely on it.")
    found += [
        f"Of a text longer than {tokenizer['max_length']} tokens {TRUNCATIONS[tokenizer['truncation']]}.",
        "It speaks for texts like those of its data; elsewhere neither metrics nor probabilities are known.",
        "Epochs, thresholds and temperatures were chosen on dev: its metrics there are better than on new texts.",
    ]
    return "\n".join(f"* {line}" for line in found)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"
