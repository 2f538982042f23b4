"""Which module may import which: the rooms of the design, and within `bert_mtl` downwards only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("conf", "hydra_plugins", "spans", "bert_mtl", "data_prep", "serving", "benchmarks")
ORDER = (
    "errors", "atomic", "scores", "significance", "history", "answer_table", "groups", "overlays", "disagreements",
    "duel", "comparison", "ahead", "flops", "machine", "dropout", "labels", "kinds", "mixing", "rules", "precisions",
    "config", "commands", "tasks", "tokenization", "weights", "vocabulary", "records", "tracking", "encoding",
    "workers", "masking", "packing", "batches", "taught", "part_reader", "input_pipeline", "pooling", "adapters",
    "encoder", "flash_attention", "attention", "checkpoints", "weighting", "r_drop", "exits", "multitask", "served",
    "optimization", "cluster", "rendezvous", "devices", "chief", "answers", "outcomes", "answer_files", "runs",
    "meter", "parts", "wire", "steps", "teachers", "text_batches", "progress", "selected", "closing", "keeper",
    "begun", "baselines", "mistakes", "calibration", "figures", "curves", "findings", "packages", "origin",
    "data_facts", "pages", "tables", "frozen", "graph_passes", "quantisation", "onnx_names", "formats", "leaving",
    "gates", "manifest", "saved_models", "model_card", "sweeps", "reference", "shifts", "samples", "signals", "views",
)  # fmt: skip
ENTRIES = ("report", "train", "evaluate", "compare", "predict", "embed", "export", "drift", "dashboard")
DATA_PREP_MAY = {
    "atomic", "config", "tasks", "kinds", "labels", "tokenization", "encoding", "records", "vocabulary", "weights",
    "workers",
}  # fmt: skip
STANDARD = set(sys.stdlib_module_names)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, within functions too, but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(node) for block in for_types for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name if is_module(name) else str(node.module) for name in names)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def modules(room: str) -> dict[str, set[str]]:
    """Module (or package within the room) -> what it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT / room).with_suffix("").parts[0]
        if name != "__init__":
            found.setdefault(name, set()).update(imports(path))
    return found


def of(room: str, imported: set[str]) -> set[str]:
    return {name.split(".")[1] for name in imported if name.startswith(f"{room}.")}


def roots(imported: set[str]) -> set[str]:
    return {name.split(".")[0] for name in imported}


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("conf", {"spans", "bert_mtl", "data_prep", "serving", "benchmarks", "tensorflow"}),
        ("hydra_plugins", {"spans", "bert_mtl", "data_prep", "serving", "benchmarks", "tensorflow", "optuna"}),
        ("spans", {"conf", "bert_mtl", "data_prep", "serving", "benchmarks", "tensorflow", "keras"}),
        ("serving", {"bert_mtl", "data_prep", "benchmarks"}),
        ("data_prep", {"serving", "benchmarks", "keras"}),
        ("bert_mtl", {"benchmarks"}),
    ],
)
def test_a_room_leaves_others_alone(room, forbidden):
    wrong = {module: roots(names) & forbidden for module, names in modules(room).items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_data_preparation_knows_the_contract_and_never_the_model():
    wrong = {module: of("bert_mtl", names) - DATA_PREP_MAY for module, names in modules("data_prep").items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_bert_mtl_imports_downwards_only():
    found = modules("bert_mtl")
    assert set(found) == {*ORDER, *ENTRIES}, "a new module needs its place in ORDER"
    wrong = {module: of("bert_mtl", found[module]) - {*ORDER[:place], module} for place, module in enumerate(ORDER)}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_only_entries_prepare_data():
    assert {module for module, names in modules("bert_mtl").items() if of("data_prep", names)} <= set(ENTRIES)


def test_only_the_exporter_asks_the_server_what_its_bundle_answers_and_only_drift_what_it_was_asked():
    found = {module: of("serving", names) for module, names in modules("bert_mtl").items()}
    assert found.pop("drift") == {"bundle"}
    assert {module for module, names in found.items() if names} == {"export"}


def test_only_tracking_imports_wandb():
    found = [module for room in ROOMS for module, names in modules(room).items() if "wandb" in roots(names)]
    assert found == ["tracking"]


@pytest.mark.parametrize("module", ["kinds", "pooling", "adapters", "encoder", "exits"])
def test_model_code_runs_on_any_keras_backend(module):
    may = {"keras", "numpy", "scipy", "pydantic", "pydantic_core", "bert_mtl", "conf", "spans"}
    assert roots(modules("bert_mtl")[module]) - STANDARD <= may


@pytest.mark.parametrize("module", ["labels", "mixing", "masking", "packing", "batches"])
def test_plans_and_batches_are_numpy_alone(module):
    assert roots(modules("bert_mtl")[module]) - STANDARD <= {"numpy", "bert_mtl", "conf"}


def test_what_the_server_shares_with_training_is_numpy_alone():
    assert set().union(*map(roots, modules("spans").values())) - STANDARD <= {"numpy", "spans"}
