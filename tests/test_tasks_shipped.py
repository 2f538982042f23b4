"""The tasks that come with the project: their YAMLs, their samples, their published files, and the real data."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from bert_mtl.config import PARTS, TaskConfig
from bert_mtl.tasks import Example, make_example, make_tasks
from conf.entry import CONF_DIR
from data_prep.sources import located, part_files, part_names, read

SHARED = Path(os.environ.get("BERT_MTL_SHARED", Path(__file__).parents[2] / "shared" / "data"))
TASKS = {
    path.stem: TaskConfig.model_validate_json(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    for path in sorted((CONF_DIR / "task").glob("*.yaml"))
}
ROWS = {  # of the real data; large train parts are not counted
    "atis": {"train": 4478, "dev": 500, "test": 893}, "chnsenticorp": {"train": 9600, "dev": 1200, "test": 1200},
    "cola": {"train": 8551, "dev": 1043}, "mrpc": {"train": 3668, "dev": 408, "test": 1725},
    "rte": {"train": 2490, "dev": 277}, "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "stsb_similarity": {"train": 5749, "dev": 1500, "test": 1379}, "trec": {"train": 5452, "test": 500},
    "wnut17": {"train": 3394, "dev": 1009, "test": 1287}, "snips": {"dev": 700, "test": 700},
    "sst2": {"dev": 872, "test": 1821}, "ag_news": {"test": 7600}, "goemotions": {"dev": 5426, "test": 5427},
}  # fmt: skip


def examples(name: str, source, part: str) -> list[Example]:
    task = make_tasks({name: TASKS[name]})[name]
    return [make_example(task, row.values, row.origin) for row in read(source, part, TASKS[name])]


def test_the_tasks_that_are_promised_are_there():
    assert set(TASKS) == {
        *("imdb", "sst2", "ag_news", "trec", "goemotions", "snips", "atis", "wnut17", "stsb", "mrpc", "rte", "cola"),
        *("chnsenticorp", "imdb_mlm", "text_mlm", "stsb_similarity", "simcse", "imdb_vectors", "imdb_unsup"),
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_its_terms_its_package_and_where_its_data_is(name):
    assert (CONF_DIR / "task" / f"{name}.yaml").read_text().startswith(f"# @package tasks.{name}\n# ")
    assert TASKS[name].license != "not stated" and "full" in TASKS[name].sources
    heads = list(TASKS[name].heads)
    assert heads == [name] if len(heads) == 1 else name not in heads


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.sources["full"].url])
def test_a_published_source_names_its_files_and_their_checksums(name):
    source = TASKS[name].sources["full"]
    names = {each for group in part_names(source).values() for each in group}
    assert "{part}" in f"{source.url}{source.member}" or source.format == "aclimdb"
    sums = source.sha256 if isinstance(source.sha256, dict) else {None: source.sha256}
    if "{part}" in str(source.url):
        assert sums.keys() == names
    assert all(value is None or (len(value) == 64 and int(value, 16)) for value in sums.values())
    assert (None in sums.values()) == (name in ("atis", "snips", "stsb", "stsb_similarity", "chnsenticorp"))


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if "sample" in task.sources])
def test_the_sample_of_a_task_is_read_whole(name):
    source = TASKS[name].sources["sample"]
    assert list(part_files(source)) == list(PARTS)
    assert all(examples(name, source, part) for part in ("dev", "test"))


# published layouts


def zipped(path: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def first(name: str, path: Path | dict[str, str], part: str = "train") -> Example:
    found = path if isinstance(path, dict) else str(path)
    return examples(name, TASKS[name].sources["full"].model_copy(update={"path": found}), part)[0]


@pytest.mark.parametrize(
    ("name", "member", "data", "example"),
    [
        ("sst2", "SST-2/train.tsv", b'sentence\tlabel\nhide "new" secretions \t0\n',
         Example('hide "new" secretions ', None, {"sst2": [0]})),
        ("cola", "CoLA/train.tsv", b"gj04\t1\t\tOur friends won't buy this.\n",
         Example("Our friends won't buy this.", None, {"cola": [1]})),
        ("rte", "RTE/train.tsv", b"index\tsentence1\tsentence2\tlabel\n0\tNo mass.\tMass.\tnot_entailment\n",
         Example("No mass.", "Mass.", {"rte": [1]})),
    ],
)  # fmt: skip
def test_the_archives_of_glue_are_read(tmp_path, name, member, data, example):
    assert first(name, zipped(tmp_path / "a.zip", member, data)) == example


def test_the_archive_of_sts_b_is_read(tmp_path):
    line = b'main-captions\tMSRvid\t2012test\t0001\t2.500\tA "plane.\tAn air plane.\tlicense\thttp://x\n'
    path = tarred(tmp_path / "a.tar.gz", {"stsbenchmark/readme.txt": b"x", "stsbenchmark/sts-test.csv": line})
    assert first("stsb", path, "test") == Example('A "plane.', "An air plane.", {"stsb": [2.5]})
    assert first("stsb_similarity", path, "test").labels == {"stsb_similarity": [2.5]}


def test_the_archive_of_atis_and_snips_is_read(tmp_path):
    files = {"seq.in": b"play westbam \n", "seq.out": b"O B-artist\n", "label": b"PlayMusic\n"}
    path = tarred(
        tmp_path / "a.tar.gz", {f"SlotGated-SLU-master/data/snips/valid/{name}": data for name, data in files.items()}
    )
    artist = 1 + 2 * TASKS["snips"].heads["slots"].labels.index("artist")
    assert first("snips", path, "dev") == Example(
        "play westbam", None, {"snips_intent": [3], "snips_slots": [0, artist]}
    )


def test_the_archive_of_chnsenticorp_is_read(tmp_path):
    data = 'label\ttext_a\n1\t房间很"好"\n'.encode()
    path = tarred(tmp_path / "a.tar.gz", {"chnsenticorp/train.tsv": data})
    assert first("chnsenticorp", path) == Example('房间很"好"', None, {"chnsenticorp": [1]})


@pytest.mark.parametrize(
    ("name", "file", "data", "example"),
    [
        ("mrpc", "train", b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tA \"b .\tC .\n",
         Example('A "b .', "C .", {"mrpc": [1]})),
        ("trec", "TREC_10", b"LOC:city Which is a sister\xf0city of it ?\n",
         Example("Which is a sisterðcity of it ?", None, {"trec": [4]})),
        ("ag_news", "train", b'"3","Wall St. ""Bears""","Short-sellers, again."\n',
         Example('Wall St. "Bears" Short-sellers, again.', None, {"ag_news": [2]})),
        ("goemotions", "dev", b'My "favourite" food\t3,27\teebbqej\n',
         Example('My "favourite" food', None, {"goemotions": [int(id in (3, 27)) for id in range(28)]})),
        ("wnut17", "wnut17train.conll", b"@paulwalk\tO\nEmpire\tB-location\nState\tI-location\n\t\nx\tO\n",
         Example("@paulwalk Empire State", None, {"wnut17": [0, 7, 8]})),
    ],
)  # fmt: skip
def test_published_files_are_read(tmp_path, name, file, data, example):
    (tmp_path / "a").write_bytes(data)
    parts = {names[0]: part for part, names in part_names(TASKS[name].sources["full"]).items()}
    assert first(name, dict.fromkeys(parts, str(tmp_path / "a")), parts[file]) == example


# the real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="no data")
@pytest.mark.parametrize("name", ROWS)
def test_real_data_is_read_from_the_folder_of_all_tasks(name):
    source = located(TASKS[name].sources["full"], name, str(SHARED))
    assert set(part_files(source)) == {"train", *ROWS[name]}
    for part, count in ROWS[name].items():
        assert sum(1 for _ in read(source, part, TASKS[name])) == count


@pytest.mark.skipif(not SHARED.is_dir(), reason="no data")
def test_labels_are_those_of_the_real_data_in_its_order():
    known = json.loads((SHARED / "labels.json").read_text())
    for name, labels in known.items():
        if name in TASKS and isinstance(labels, list) and "O" not in labels:
            assert TASKS[name].heads[name].labels == labels
    for name, heads in {"wnut17": {"wnut17": known["wnut17"]}, "snips": known["snips"], "atis": known["atis"]}.items():
        for head, labels in heads.items():
            types = sorted({label[2:] for label in labels if label != "O"}) if "O" in labels else labels
            assert TASKS[name].heads[head].labels == types


@pytest.mark.skipif(not SHARED.is_dir(), reason="no data")
@pytest.mark.parametrize("name", ["imdb", "imdb_mlm"])
def test_imdb_is_found_in_the_folder_of_all_tasks(name):
    source = located(TASKS[name].sources["full"], name, str(SHARED))
    assert source.format == "aclimdb"
    assert "text" in next(read(source, "test", TASKS[name])).values
