"""Which module may import which: the rooms of the design, and within `bert_mtl` downwards only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("conf", "bert_mtl", "data_prep", "serving", "benchmarks")
ORDER = (
    "config", "tasks", "tokenization", "weights", "vocabulary", "records", "workers", "packing", "input_pipeline",
    "encoder", "checkpoints", "heads", "multitask", "optimization", "devices", "runs", "keeper", "tracking", "report",
)  # fmt: skip
ENTRIES = ("train", "evaluate", "predict", "embed", "export")
DATA_PREP_MAY = ("config", "tasks", "tokenization", "records", "vocabulary", "weights", "workers")
MODEL_CODE = {"keras", "numpy", *sys.stdlib_module_names}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, those within functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
            is_module = [(ROOT / name.replace(".", "/")).with_suffix(".py").exists() for name in names]
            yield from (name if known else str(node.module) for name, known in zip(names, is_module, strict=True))


def files(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")


def modules(room: str) -> dict[str, set[str]]:
    """Module -> what it imports."""
    return {path.stem: set(imports(path)) for path in files(room)}


def of(room: str, imported: set[str]) -> set[str]:
    return {name.split(".")[1] for name in imported if name.startswith(f"{room}.")}


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("conf", {"bert_mtl", "data_prep", "serving", "benchmarks", "tensorflow"}),
        ("serving", {"bert_mtl", "data_prep", "benchmarks"}),
        ("data_prep", {"serving", "benchmarks", "keras"}),
        ("bert_mtl", {"serving", "benchmarks"}),
    ],
)
def test_a_room_leaves_others_alone(room, forbidden):
    wrong = {module: {name.split(".")[0] for name in names} & forbidden for module, names in modules(room).items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_data_preparation_knows_the_contract_and_never_the_model():
    wrong = {module: of("bert_mtl", names) - set(DATA_PREP_MAY) for module, names in modules("data_prep").items()}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_bert_mtl_imports_downwards_only():
    found = modules("bert_mtl")
    assert set(found) == {*ORDER, *ENTRIES}, "a new module needs its place in ORDER"
    wrong = {module: of("bert_mtl", found[module]) - set(ORDER[:place]) for place, module in enumerate(ORDER)}
    assert {module: names for module, names in wrong.items() if names} == {}


def test_only_entries_prepare_data():
    assert {module for module, names in modules("bert_mtl").items() if of("data_prep", names)} <= set(ENTRIES)


def test_only_tracking_imports_wandb():
    found = [
        module
        for room in ROOMS
        for module, names in modules(room).items()
        if "wandb" in {n.split(".")[0] for n in names}
    ]
    assert found == ["tracking"]


@pytest.mark.parametrize("module", ["encoder", "heads"])
def test_model_code_runs_on_any_keras_backend(module):
    outside = {name.split(".")[0] for name in modules("bert_mtl")[module]} - MODEL_CODE - {"bert_mtl", "conf"}
    assert outside == set()
