"""How good MiniLM gets on IMDB, and what each part of the way brings.

    python -m benchmarks.imdb data=../shared/data [recipes=plain,adapted,…] [test=plain,…] [seeds=1,2,3]

Every recipe is `experiment=imdb_minilm` with some settings changed (`longer`: none; `plain`: `imdb_full`). Each is
trained with every seed on the same examples (`data.seed`), and compared by the accuracy on dev after its last epoch.
Test is looked at for the recipes named by `test`, by the same runs. All but `plain` start from a run of
`experiment=imdb_mlm` (the folder `mlm`, where it is given; else it is trained first); what teaches a recipe is a recipe
too, chosen with it.
Runs are kept in the folder `runs`, so that an interrupted call goes on. Further arguments are settings for all runs;
`jobs` run at a time over `gpus` (such as 0,1). The result is `benchmarks/results/<result>.json`.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.machine import save
from benchmarks.runs import Training, spread, train_all

OWN = {"data": "../shared/data", "recipes": "", "test": "", "seeds": "1,2,3", "jobs": "1", "gpus": "0"}
OWN |= {"runs": "runs/imdb", "mlm": "", "result": "imdb"}


class Recipe(NamedTuple):
    """Beside `experiment=imdb_minilm` (`imdb_full` if not `pretrained` further); `taught` by another's runs."""

    settings: tuple[str, ...] = ()
    pretrained: bool = True
    taught: str | None = None


THREE = ("train.epochs=3",)
READ_ONCE = (*THREE, "train.r_drop=0")
RECIPES = {
    "plain": Recipe(("train.select=last",), pretrained=False),
    "adapted": Recipe((*READ_ONCE, "optimizer.ema=null", "optimizer.learning_rate=1e-4")),
    "ema": Recipe(READ_ONCE),
    "r_drop": Recipe(THREE),
    "fast": Recipe((*THREE, "optimizer.learning_rate=1e-4")),
    "layer_decay": Recipe((*THREE, "optimizer.layer_decay=0.9")),
    "sst2": Recipe((*THREE, "task=[imdb,sst2]", "tasks.sst2.limit=20000")),
    "longer": Recipe(),
    "taught": Recipe(("distill.weight=0.7",), taught="longer"),
    "unsup": Recipe(("task=[imdb,imdb_unsup]", "distill.weight=0.7"), taught="longer"),
}


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    own = {key: given.pop(key, default) for key, default in OWN.items()}
    common = ["data=full", f"data.path={own['data']}", *(f"{key}={value}" for key, value in given.items())]
    named = own["recipes"].split(",") if own["recipes"] else list(RECIPES)
    chosen = list(dict.fromkeys([*filter(None, (RECIPES[name].taught for name in named)), *named]))
    scores: dict[str, dict[str, list[float]]] = {}
    runs, jobs = Path(own["runs"]), int(own["jobs"])
    adapted = Path(own["mlm"] or runs / "mlm")
    if any(RECIPES[name].pretrained for name in chosen) and not own["mlm"]:
        train_all([Training(adapted, ["experiment=imdb_mlm", *common])], 1, own["gpus"])
    # Teachers first: what they teach waits for all of them.
    for group in ([name for name in chosen if RECIPES[name].taught is None], [n for n in chosen if RECIPES[n].taught]):
        each = [(name, seed) for name in group for seed in own["seeds"].split(",")]
        trainings = [
            Training(runs / f"{name}-{seed}", settings(name, seed, own, adapted, common)) for name, seed in each
        ]
        for (name, _), metrics in zip(each, train_all(trainings, jobs, own["gpus"]), strict=True):
            found = scores.setdefault(name, {"dev": [], "test": []})
            found["dev"].append(metrics["epochs"][-1]["dev"]["imdb"]["accuracy"])
            if metrics["test"]:
                found["test"].append(metrics["test"]["imdb"]["accuracy"])
    show(scores)
    facts = {name: RECIPES[name]._asdict() for name in chosen}
    save(own["result"], {"scores": scores, "recipes": facts, "seeds": own["seeds"], "settings": given}, "tensorflow")


def settings(name: str, seed: str, own: dict[str, str], adapted: Path, common: list[str]) -> list[str]:
    """Of the run of a recipe with one seed."""
    recipe = RECIPES[name]
    experiment = "imdb_minilm" if recipe.pretrained else "imdb_full"
    found = [f"experiment={experiment}", f"seed={seed}", *common, *recipe.settings]
    found.append(f"train.test={'true' if name in own['test'].split(',') else 'false'}")
    found += [f"model.weights=file://{adapted}"] if recipe.pretrained else []
    if recipe.taught is not None:
        teachers = [str(Path(own["runs"]) / f"{recipe.taught}-{each}") for each in own["seeds"].split(",")]
        found.append(f"distill.teachers=[{','.join(teachers)}]")
    return found


def show(scores: dict[str, dict[str, list[float]]]) -> None:
    table = Table("recipe", "dev accuracy", "test accuracy", "runs")
    for name, found in scores.items():
        test = spread(found["test"]) if found["test"] else ""
        table.add_row(name, spread(found["dev"]), test, str(len(found["dev"])))
    Console().print(table)


if __name__ == "__main__":
    main()
