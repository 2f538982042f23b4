"""Readers: every raw format gives the same rows, and everything that is wrong is said with its place."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from bert_mtl.config import SourceConfig, TaskConfig
from bert_mtl.tasks import DataError, make_example, make_tasks
from data_prep.formats import PIECE
from data_prep.sources import located, part_files, read, read_texts

HEADS = {"mood": {"kind": "classification", "labels": ["neg", "pos"]}}
TASK = TaskConfig.model_validate({"heads": HEADS, "sources": {"full": {"format": "jsonl"}}})
TWO = TaskConfig.model_validate(
    {
        "heads": HEADS | {"genre": {"kind": "classification", "labels": ["a", "b"]}},
        "sources": {"full": {"format": "csv"}},
    }
)


def task_of(**heads: dict) -> TaskConfig:
    return TaskConfig.model_validate({"heads": heads, "sources": {"full": {"format": "jsonl"}}})


CITIES = task_of(
    intent={"kind": "classification", "labels": ["fly", "eat"]}, slots={"kind": "tagging", "labels": ["city"]}
)
FEELINGS = task_of(feelings={"kind": "multilabel", "labels": ["joy", "fear", "love"]})
LIKENESS = task_of(likeness={"kind": "similarity"})
ROWS = [("A good film", "pos"), ('Dull, "really", naïve', "neg")]


def rows(path, format: str = "jsonl", task: TaskConfig = TASK, part: str = "train", **columns) -> list[dict]:
    source = SourceConfig(format=format, path=str(path), columns=columns)
    return [row.values for row in read(source, part, task)]


def message(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        rows(*args, **kwargs)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# files of lines


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("format", ["jsonl", "csv", "tsv"])
def test_every_format_gives_the_same_rows(tmp_path, format, suffix):
    texts = {
        "jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS),
        "csv": 'label,text\npos,A good film\nneg,"Dull, ""really"", naïve"\n',
        "tsv": 'text\tlabel\r\nA good film\tpos\r\nDull, "really", naïve\tneg\r\n',
    }
    path = write(tmp_path / f"a.{format}{suffix}", texts[format])
    assert rows(path, format) == [{"text": text, "mood": label} for text, label in ROWS]


def test_columns_are_mapped_and_the_others_keep_their_default_names(tmp_path):
    path = write(tmp_path / "a.csv", "id,review,other,label\n1,Fine,second,pos\n")
    assert rows(path, "csv", text="review") == [{"text": "Fine", "mood": "pos"}]
    assert rows(path, "csv", text="review", text_b="other") == [{"text": "Fine", "text_b": "second", "mood": "pos"}]


def test_several_heads_are_read_from_the_columns_of_their_names(tmp_path):
    path = write(tmp_path / "a.csv", "text,mood,kind\nFine,pos,b\n")
    assert rows(path, "csv", task=TWO, genre="kind") == [{"text": "Fine", "mood": "pos", "genre": "b"}]


def test_a_quoted_csv_value_may_hold_line_ends(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",pos\n\nthree,neg\n')
    assert [row["text"] for row in rows(path, "csv")] == ["one\ntwo", "three"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    assert rows(write(tmp_path / "a.csv", "\ufefftext,label\nx,pos\n"), "csv") == [{"text": "x", "mood": "pos"}]


def json_lines(path: Path, *records: dict) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(("value", "label"), [(1, 1), (True, "true"), ("1", "1"), (0.5, 0.5), ([1, "a"], [1, "a"])])
def test_json_labels_stay_what_they_are_but_for_booleans(tmp_path, value, label):
    assert rows(json_lines(tmp_path / "a.jsonl", {"text": "x", "label": value})) == [{"text": "x", "mood": label}]


def test_null_says_that_an_example_has_no_label(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"text": "x", "label": None}, {"text": "y", "label": "pos"})
    assert [row["mood"] for row in rows(path)] == [None, "pos"]


def test_a_part_without_any_label_of_a_head_is_refused(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", *[{"text": "x", "label": None}] * 3)
    assert message(path) == (
        "the train part must hold a label of head mood in at least one row (column label); got none in 3 rows."
    )


def test_labels_of_the_file_may_be_named_otherwise(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"text": "x", "label": 1}, {"text": "y", "label": "good"})
    source = SourceConfig(format="jsonl", path=str(path), labels={"mood": {"1": "neg", "good": "pos"}})
    assert [row.values["mood"] for row in read(source, "train", TASK)] == ["neg", "pos"]


def test_several_columns_make_one_text(tmp_path):
    path = write(tmp_path / "a.csv", "title,body,label\nOh,dear,neg\n")
    assert rows(path, "csv", text=["title", "body"]) == [{"text": "Oh dear", "mood": "neg"}]


def test_columns_by_number_are_of_a_table_without_a_header(tmp_path):
    path = write(tmp_path / "a.tsv", "a\tneg\tx\nb\tpos\ty\tmore\n")
    assert rows(path, "tsv", text=0, mood=1) == [{"text": "a", "mood": "neg"}, {"text": "b", "mood": "pos"}]
    assert rows(path, "tsv", text=-1, mood=1)[1]["text"] == "more"
    said = "a.tsv:1: columns.text must name a column of the file; got 3. Options: -3, -2, -1, 0, 1, 2."
    assert message(path, "tsv", text=3, mood=1).startswith(said)


def test_two_columns_of_the_wanted_name_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,text\nx,pos,y\n")
    assert message(path, "csv") == "a.csv:1: columns.text must name one column; got text, the name of 2."


# words, several labels, scores


def test_words_make_the_text_and_each_head_has_its_column(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"tokens": ["to", "Rome"], "tags": ["O", "B-city"], "label": "fly"})
    assert rows(path, task=CITIES) == [
        {"tokens": ["to", "Rome"], "text": "to Rome", "slots": ["O", "B-city"], "intent": "fly"}
    ]


def test_in_a_table_spaces_part_words_and_commas_labels(tmp_path):
    path = write(tmp_path / "a.tsv", "tokens\ttags\tlabel\nto  Rome\tO B-city\tfly\n")
    assert rows(path, "tsv", task=CITIES) == [
        {"tokens": ["to", "Rome"], "text": "to Rome", "slots": ["O", "B-city"], "intent": "fly"}
    ]
    path = write(tmp_path / "b.csv", 'text,labels\nx,"joy, 2"\ny,\n')
    assert [row["feelings"] for row in rows(path, "csv", task=FEELINGS)] == [["joy", "2"], []]


def test_words_alone_can_be_the_text_of_any_task(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"words": ["so", "good"], "label": "pos"})
    assert rows(path, tokens="words") == [{"tokens": ["so", "good"], "text": "so good", "mood": "pos"}]


def test_white_space_within_a_word_is_taken_out(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"tokens": ["10\xa0000", " a\tb"], "tags": ["O", "O"], "label": "fly"})
    assert rows(path, task=CITIES)[0]["text"] == "10000 ab"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["a", " "], "a.jsonl:1: tokens must not hold an empty word; got ' ' as word 2."),
        ([], "a.jsonl:1: tokens must be a list of at least one word; got []."),
        (None, "a.jsonl:1: tokens must be a list of at least one word; got null."),
        (["a", ["b"]], 'a.jsonl:1: tokens must be text or a number; got ["b"].'),
    ],
)
def test_words_that_are_none_are_refused(tmp_path, tokens, said):
    path = json_lines(tmp_path / "a.jsonl", {"tokens": tokens, "tags": ["O", "O"], "label": "fly"})
    assert message(path, task=CITIES) == said


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (["O"], ["a.jsonl:1", "must be as many as the 2 words", "got 1"]),
        (["O", "B-citty"], ["a.jsonl:1", "Options: O, B-city, I-city", "Did you mean B-city?"]),
    ],
)
def test_tags_that_do_not_fit_their_words_are_refused(tmp_path, tags, said):
    path = json_lines(tmp_path / "a.jsonl", {"tokens": ["to", "Rome"], "tags": tags, "label": "fly"})
    (row,) = read(SourceConfig(format="jsonl", path=str(path)), "train", CITIES)
    with pytest.raises(DataError) as caught:
        make_example(make_tasks({"trip": CITIES})["trip"], row.values, row.origin)
    for part in said:
        assert part in str(caught.value)


def test_scores_of_pairs_may_be_missing_and_single_texts_have_none(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"text": "x", "b": "y", "label": 2}, {"text": "v", "b": "w"})
    pairs = rows(path, task=LIKENESS, text_b="b")
    assert pairs == [{"text": "x", "text_b": "y", "likeness": 2}, {"text": "v", "text_b": "w"}]
    assert rows(path, task=LIKENESS) == [{"text": "x"}, {"text": "v"}]
    assert "columns.likeness must name a column" in message(path, task=LIKENESS, text_b="b", likeness="label")


# parts


def files_of(source: SourceConfig) -> dict[str, list[Path]]:
    return {part: [file.path for file in files] for part, files in part_files(source).items()}


def test_parts_are_found_by_their_names(tmp_path):
    for part in ("train", "test"):
        json_lines(tmp_path / f"{part}.jsonl", {"text": part, "label": "pos"})
    source = SourceConfig(format="jsonl", path=str(tmp_path / "{part}.jsonl"))
    assert files_of(source) == {part: [tmp_path / f"{part}.jsonl"] for part in ("train", "test")}
    assert [row.values["text"] for row in read(source, "test", TASK)] == ["test"]
    source = SourceConfig(format="jsonl", path={"train": str(tmp_path / "test.jsonl")})
    assert files_of(source) == {"train": [tmp_path / "test.jsonl"]}


def test_a_part_may_be_called_otherwise_and_made_of_several(tmp_path):
    for name in ("a", "b", "valid"):
        json_lines(tmp_path / f"{name}.jsonl", {"text": name, "label": "pos"})
    source = SourceConfig(
        format="jsonl", path=str(tmp_path / "{part}.jsonl"), parts={"train": ["a", "b"], "dev": "valid"}
    )
    assert [row.values["text"] for row in read(source, "train", TASK)] == ["a", "b"]
    assert [row.values["text"] for row in read(source, "dev", TASK)] == ["valid"]


def test_a_source_that_is_not_there_or_lacks_train_is_refused(tmp_path):
    write(tmp_path / "test.jsonl", "")
    with pytest.raises(DataError, match=r"must be an existing file or folder; got .*train\.jsonl"):
        part_files(SourceConfig(format="jsonl", path=str(tmp_path / "{part}.jsonl")))
    with pytest.raises(DataError, match=r"must be an existing file or folder; got .*valid\.jsonl"):
        part_files(SourceConfig(format="jsonl", path=str(tmp_path / "{part}.jsonl"), parts={"dev": "valid"}))
    with pytest.raises(DataError, match="must give a train part; got test"):
        part_files(SourceConfig(format="jsonl", path={"test": str(tmp_path / "test.jsonl")}))


# archives

TABLE = b"text\tlabel\ngood\tpos\n"


@pytest.fixture(params=["zip", "tar.gz", "tar", "folder", "folder inside"])
def packed(tmp_path, request) -> Path:
    """`Set/train.tsv` in an archive, unpacked, or in the folder that was unpacked."""
    path = tmp_path / f"a.{request.param}"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("Set/train.tsv", TABLE)
    elif "tar" in request.param:
        with tarfile.open(path, "w:gz" if "gz" in request.param else "w") as archive:
            member = tarfile.TarInfo("./Set/train.tsv")
            member.size = len(TABLE)
            archive.addfile(member, io.BytesIO(TABLE))
    else:
        write(tmp_path / "Set/train.tsv", TABLE.decode())
        return tmp_path / "Set" if "inside" in request.param else tmp_path
    return path


def test_a_member_is_read_without_unpacking(packed):
    source = SourceConfig(format="tsv", path=str(packed), member="Set/{part}.tsv", parts={"train": "train"})
    assert list(read(source, "train", TASK)) == [({"text": "good", "mood": "pos"}, "Set/train.tsv:2")]


def test_a_missing_member_is_named_beside_those_that_are_alike(packed):
    source = SourceConfig(format="tsv", path=str(packed), member="Set/{part}.tsv", parts={"train": "trian"})
    with pytest.raises(DataError, match=r"Set/trian\.tsv.*Did you mean (\./)?Set/train\.tsv|existing file or folder"):
        list(read(source, "train", TASK))


@pytest.mark.parametrize("mode", ["zip", "tar.gz"])
def test_a_damaged_archive_is_refused(tmp_path, mode):
    path, data = tmp_path / "a", json.dumps({"text": "".join(map(chr, range(97, 123))), "label": "pos"}).encode()
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train.jsonl", data)
    else:
        archive_of(path, {"train.jsonl": data})
    broken = bytearray(path.read_bytes())
    broken[45 if mode == "zip" else 30] ^= 0xFF
    path.write_bytes(broken)
    member = "train.jsonl" if mode == "zip" else "aclImdb/train.jsonl"
    with pytest.raises(DataError, match="is damaged or truncated"):
        list(read(SourceConfig(format="jsonl", path=str(path), member=member), "train", TASK))


@pytest.mark.parametrize(
    ("format", "text"), [("csv", "text,lable\nx,pos\n"), ("jsonl", '{"text": "x", "lable": "pos"}\n')]
)
def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path, format, text):
    path = write(tmp_path / f"a.{format}", text)
    assert message(path, format) == (
        f"a.{format}:1: columns.mood must name a column of the file; got label. Options: text, lable. "
        "Did you mean lable?"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv:1: columns.text must name a column of the file; got text."),
        ("text,label\nA slow, dull film,neg\n", "a.csv:2: a row must have 2 values as line 1; got 3. A value that"),
        ("text,label\nfine,pos\nfine\n", "a.csv:3: a row must have 2 values as line 1; got 1."),
        ('text,label\n"fine,pos\nx,neg\n', "a.csv:3: the row must be valid CSV; unexpected end of data."),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path, text, said):
    assert message(write(tmp_path / "a.csv", text), "csv").startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'text': 1}", "a.jsonl:2: the line must be one JSON object; Expecting property name"),
        ("[1]", "a.jsonl:2: the line must be one JSON object; got [1]."),
        ('{"text": null, "label": "pos"}', "a.jsonl:2: text must be text or a number; got null."),
        ('{"text": "x", "label": {}}', "a.jsonl:2: label must be text, a number, a list or null; got {}."),
        ('{"text": ["x"], "label": "pos"}', 'a.jsonl:2: text must be text or a number; got ["x"].'),
        (
            '{"text": "\\ud800", "label": "pos"}',
            "a.jsonl:2: text must be Unicode text; got half of a surrogate pair, '\\ud800'.",
        ),
    ],
)
def test_a_damaged_json_line_is_refused_with_its_number(tmp_path, line, said):
    assert message(write(tmp_path / "a.jsonl", f'{{"text": "x", "label": "pos"}}\n{line}\n')).startswith(said)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_invalid_utf_8_is_said_with_file_line_and_offset(tmp_path, suffix):
    data = b'{"text": "caf\xc3\xa9", "label": "pos"}\n{"text": "caf\xe9", "label": "pos"}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    assert data[47] == 0xE9
    said = message(path)
    assert said.startswith(
        f"a.jsonl{suffix}:2: the text must be UTF-8; got byte 0xe9 at offset 47 of the file. Convert"
    )


def test_a_truncated_gzip_file_is_refused(tmp_path):
    data = gzip.compress("".join(json.dumps({"text": str(i), "label": "pos"}) + "\n" for i in range(9999)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[:-1000])
    assert "a.jsonl.gz is damaged or truncated (Compressed file ended" in message(tmp_path / "a.jsonl.gz")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    assert message(tmp_path) == f"{tmp_path} cannot be read: Is a directory."


# a folder per label


def test_a_folder_per_label_gives_its_files_as_rows(tmp_path):
    for name, text in {
        "neg/1.txt": "dull\n",
        "pos/1.txt": "good",
        "pos/2.txt": "fine",
        "pos/notes.md": "x",
        ".git/a.txt": "x",
    }.items():
        write(tmp_path / name, text)
    assert rows(tmp_path, "folder") == [
        {"text": "dull\n", "mood": "neg"}, {"text": "good", "mood": "pos"}, {"text": "fine", "mood": "pos"},
    ]  # fmt: skip


def test_a_missing_label_folder_is_named_beside_those_that_are_there(tmp_path):
    write(tmp_path / "neg/1.txt", "x")
    write(tmp_path / "poss/1.txt", "x")
    assert message(tmp_path, "folder") == (
        f"{tmp_path}: its folders must name every label of head mood; got pos. Options: neg, poss. Did you mean poss?"
    )


def test_an_empty_label_folder_and_a_file_that_is_not_utf_8_are_named(tmp_path):
    write(tmp_path / "neg/1.txt", "x")
    (tmp_path / "pos").mkdir()
    assert message(tmp_path, "folder") == f"{tmp_path / 'pos'} must hold .txt files, one text each; got none."
    (tmp_path / "pos/2.txt").write_bytes(b"ab\xff")
    assert "pos/2.txt: the text must be UTF-8; got byte 0xff at offset 2 of the file." in message(tmp_path, "folder")


# the Large Movie Review Dataset

REVIEWS = {
    "train/neg/0_3.txt": "dull", "train/pos/0_9.txt": "good", "train/pos/1_8.txt": "fine é",
    "train/unsup/0_0.txt": "who knows",
    "test/neg/0_1.txt": "bad", "test/pos/0_10.txt": "great", "imdb.vocab": "words", "train/urls_pos.txt": "urls",
}  # fmt: skip


@pytest.fixture(params=["folder", "folder above", "tar.gz", "tar"])
def aclimdb(tmp_path, request) -> Path:
    folder = tmp_path / "aclImdb"
    for name, text in REVIEWS.items():
        write(folder / name, text)
    if request.param == "folder":
        return folder
    if request.param == "folder above":
        return tmp_path
    with tarfile.open(tmp_path / f"a.{request.param}", "w:gz" if "gz" in request.param else "w") as archive:
        archive.add(folder, "aclImdb")
    return tmp_path / f"a.{request.param}"


def test_imdb_is_read_from_its_archive_and_its_folder(aclimdb):
    def found(part: str, **parts) -> list[tuple[str, str]]:
        source = SourceConfig(format="aclimdb", path=str(aclimdb), **parts)
        return sorted((row.values["text"], row.values["mood"]) for row in read(source, part, TASK))

    assert found("train") == [("dull", "neg"), ("fine é", "pos"), ("good", "pos")]
    assert found("test") == [("bad", "neg"), ("great", "pos")]
    both = {"train": ["train", "unsup"]}
    assert found("train", parts=both) == [("dull", "neg"), ("fine é", "pos"), ("good", "pos"), ("who knows", None)]
    with pytest.raises(DataError, match=r"parts must name parts of the data set; got unsub\. .*Did you mean unsup\?"):
        found("train", parts={"train": "unsub"})


def archive_of(path: Path, reviews: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in reviews.items():
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_cut_anywhere_is_refused(tmp_path, mode):
    reviews = {f"train/{label}/{i}_1.txt": f"{label} {i}".encode() * 50 for label in ("neg", "pos") for i in range(40)}
    path = archive_of(tmp_path / "a.tar", reviews, mode)
    assert len(rows(path, "aclimdb")) == 80
    data = path.read_bytes()
    # in the middle of a member, between two members (where tarfile sees the end of the archive), and at the very end
    for size in (
        len(data) // 2,
        len(data) * 4 // 5,
        (len(data) - 11000) // 512 * 512,
        len(data) - (5 if mode == "w:gz" else 10240),
    ):
        path.write_bytes(data[:size])
        assert "is damaged or truncated" in message(path, "aclimdb"), size


def test_one_flipped_byte_of_an_archive_is_found(tmp_path):
    path = archive_of(
        tmp_path / "a.tar.gz", {"train/neg/0_1.txt": b"x" * 9, "train/pos/0_9.txt": bytes(range(97, 123)) * 9}
    )
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the checksum at the end
    path.write_bytes(data)
    assert "is damaged or truncated" in message(path, "aclimdb")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    assert "is damaged or truncated" in message(write(tmp_path / "a.tar.gz", "<html>404</html>"), "aclimdb")


def test_missing_label_folders_of_imdb_are_named(tmp_path):
    said = "must hold reviews in train/neg and train/pos; got none in train/neg."
    path = archive_of(tmp_path / "a.tar.gz", {"train/pos/0_9.txt": b"x"})
    assert said in message(path, "aclimdb")
    write(tmp_path / "train/pos/0_9.txt", "x")
    assert said in message(tmp_path, "aclimdb")


def test_a_review_that_is_not_utf_8_is_named(tmp_path):
    path = archive_of(tmp_path / "a.tar.gz", {"train/neg/0_1.txt": b"x", "train/pos/7_9.txt": b"ab\xe9"})
    assert message(path, "aclimdb").startswith("train/pos/7_9.txt: the text must be UTF-8; got byte 0xe9 at offset 2")


# words with their tags, and texts alone


def test_conll_files_give_a_text_for_every_block(tmp_path):
    text = "-DOCSTART- O\n\nto\tO\nRome\tB-city\n\t\nhi\tO\n"
    path = write(tmp_path / "a.conll", text)
    task = task_of(slots=CITIES.heads["slots"])
    assert rows(path, "conll", task=task) == [
        {"tokens": ["to", "Rome"], "text": "to Rome", "slots": ["O", "B-city"]},
        {"tokens": ["hi"], "text": "hi", "slots": ["O"]},
    ]
    spaced = write(tmp_path / "b.conll", "to TO O x\nRome NNP B-city y")
    assert rows(spaced, "conll", task=task, slots=2)[0]["slots"] == ["O", "B-city"]


def test_a_conll_line_with_other_columns_is_refused(tmp_path):
    path = write(tmp_path / "a.conll", "hi O\n\nto O\nRome\n")
    said = "a.conll:4: a line must have 2 columns as those before; got 1. An empty line ends a text."
    assert message(path, "conll", task=task_of(slots=CITIES.heads["slots"])) == said


def test_plain_texts_are_lines_of_any_file_in_a_folder_and_long_ones_are_cut(tmp_path):
    write(tmp_path / "a.txt", "one\n\ntwo words\n")
    write(tmp_path / "sub/b.txt.gz", " ".join(map(str, range(PIECE + 2))))
    json_lines(tmp_path / "sub/c.jsonl", {"text": "four", "label": 1})
    write(tmp_path / "notes.md", "x")
    found = [row["text"] for row in rows(tmp_path, "text", task=LIKENESS)]
    assert found == ["one", "two words", " ".join(map(str, range(PIECE))), f"{PIECE} {PIECE + 1}", "four"]
    assert rows(tmp_path / "a.txt", "text", task=LIKENESS) == [{"text": "one"}, {"text": "two words"}]
    assert "must be or hold .txt or .jsonl files; got none." in message(tmp_path / "notes.md", "text", task=LIKENESS)


# data.path

PAIRS = SourceConfig(format="tsv", columns={"text": "a", "text_b": "b"}, url="http://nowhere", member="x/{part}.tsv")


def test_a_file_is_the_sources_own(tmp_path):
    assert located(PAIRS, "mood", "/x/{part}.tsv") == PAIRS.model_copy(update={"path": "/x/{part}.tsv"})


def test_a_folder_of_many_tasks_gives_each_its_own_files(tmp_path):
    for name in ("mood.train_part.jsonl.gz", "mood.test.jsonl", "moody.dev.jsonl", "mood.train.tsv"):
        write(tmp_path / name, "")
    expected = {"train": str(tmp_path / "mood.train_part.jsonl.gz"), "test": str(tmp_path / "mood.test.jsonl")}
    assert located(SourceConfig(format="trec", parts={"train": "x"}), "mood", str(tmp_path)) == SourceConfig(
        format="jsonl", path=expected
    )
    assert located(PAIRS, "mood", str(tmp_path)).columns == {"text": "text_a", "text_b": "text_b"}
    assert located(PAIRS.model_copy(update={"local": "mood"}), "other", str(tmp_path)).path == expected
    write(tmp_path / "mood.train.jsonl", "")
    with pytest.raises(DataError, match=r"must hold one file mood\.train; got .*mood\.train\.jsonl and .*train_part"):
        located(PAIRS, "mood", str(tmp_path))


def test_a_source_may_be_called_otherwise_in_a_folder_of_many(tmp_path):
    (tmp_path / "aclImdb_v1").mkdir()
    source = SourceConfig(format="aclimdb", local="aclImdb*")
    assert located(source, "imdb", str(tmp_path)) == source.model_copy(update={"path": str(tmp_path / "aclImdb_v1")})


def test_a_folder_in_the_sources_own_layout_is_taken(tmp_path):
    write(tmp_path / "x/train.tsv", "")
    write(tmp_path / "notes.txt", "")
    own = (PAIRS.model_copy(update={"parts": {"train": "train"}}), SourceConfig(format="text"))
    for source in (*own, SourceConfig(format="folder")):
        assert located(source, "mood", str(tmp_path)).path == str(tmp_path)
    write(tmp_path / "other.train.jsonl", "")
    with pytest.raises(DataError, match="must hold the data of task mood"):  # and not the texts of another
        located(SourceConfig(format="text"), "mood", str(tmp_path))


def test_a_folder_with_nothing_of_the_task_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError) as caught:
        located(SourceConfig(format="aclimdb", local="aclImdb*"), "imdb", str(tmp_path))
    assert str(caught.value) == (
        "data.path must hold the data of task imdb (imdb.<part>.jsonl[.gz] or aclImdb*), "
        f"or be its source's own file or folder (format aclimdb); got {tmp_path}."
    )


# texts to be answered


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "one\r\ntwo, three\n"),
        ("a.txt.gz", "one\ntwo, three"),
        ("a.jsonl", '{"text": "one"}\n{"text": "two, three", "id": 7}\n'),
        ("a.csv", 'id,text\n1,one\n2,"two, three"\n'),
        ("a.tsv", "text\none\ntwo, three\n"),
    ],
)
def test_texts_are_read_from_every_kind_of_file(tmp_path, name, text):
    found = list(read_texts(write(tmp_path / name, text)))
    assert [row.values for row in found] == [{"text": "one"}, {"text": "two, three"}]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "text,text_b\nx,y\n"), ("a.jsonl", '{"text": "x", "text_b": "y"}\n')]
)
def test_a_second_text_makes_pairs(tmp_path, name, text):
    assert [row.values for row in read_texts(write(tmp_path / name, text))] == [{"text": "x", "text_b": "y"}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "one\n\n", "a.txt:2: text must not be empty; got ''."),
        ("a.csv", "text,text_b\nx, \n", "a.csv:2: text_b must not be empty; got ' '."),
        ("a.csv", "review\nx\n", "a.csv:1: columns.text must name a column of the file; got text. Options: review."),
        ("a.xml", "x", "input must end in a known kind of file; got a.xml. Options: .txt, .jsonl, .csv, .tsv."),
    ],
)
def test_texts_that_cannot_be_answered_are_refused(tmp_path, name, text, said):
    with pytest.raises(DataError) as caught:
        list(read_texts(write(tmp_path / name, text)))
    assert str(caught.value) == said


def test_a_missing_file_of_texts_is_refused(tmp_path):
    with pytest.raises(DataError, match="input must be an existing file"):
        list(read_texts(tmp_path / "a.txt"))
