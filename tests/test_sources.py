"""Readers: every raw format gives the same rows, and everything that is wrong is said with its place."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from bert_mtl.config import SourceConfig, TaskConfig
from bert_mtl.tasks import DataError
from data_prep.sources import part_paths, read, read_texts

HEADS = {"mood": {"kind": "classification", "labels": ["neg", "pos"]}}
TASK = TaskConfig.model_validate({"heads": HEADS, "sources": {"full": {"format": "jsonl"}}})
TWO = TaskConfig.model_validate(
    {
        "heads": HEADS | {"genre": {"kind": "classification", "labels": ["a", "b"]}},
        "sources": {"full": {"format": "csv"}},
    }
)
ROWS = [("A good film", "pos"), ('Dull, "really", naïve', "neg")]


def rows(path, format: str = "jsonl", part: str = "train", task: TaskConfig = TASK, **columns: str) -> list[dict]:
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


@pytest.mark.parametrize(("value", "label"), [(1, "1"), (True, "true"), ("1", "1"), (0.5, "0.5")])
def test_json_labels_may_be_numbers_and_booleans(tmp_path, value, label):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x", "label": value}) + "\n\n")
    assert rows(path) == [{"text": "x", "mood": label}]


def test_parts_are_found_by_their_names(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"{part}.jsonl", json.dumps({"text": part, "label": "pos"}) + "\n")
    source = SourceConfig(format="jsonl", path=str(tmp_path / "{part}.jsonl"))
    assert part_paths(source) == {part: tmp_path / f"{part}.jsonl" for part in ("train", "test")}
    assert [row.values["text"] for row in read(source, "test", TASK)] == ["test"]
    source = SourceConfig(format="jsonl", path={"train": str(tmp_path / "test.jsonl")})
    assert part_paths(source) == {"train": tmp_path / "test.jsonl"}


def test_a_source_that_is_not_there_or_lacks_train_is_refused(tmp_path):
    write(tmp_path / "test.jsonl", "")
    with pytest.raises(DataError, match=r"must be an existing file or folder; got .*train\.jsonl"):
        part_paths(SourceConfig(format="jsonl", path=str(tmp_path / "{part}.jsonl")))
    with pytest.raises(DataError, match="must give a train part; got test"):
        part_paths(SourceConfig(format="jsonl", path={"test": str(tmp_path / "test.jsonl")}))


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
    def found(part: str) -> list[tuple[str, str]]:
        return sorted((row["text"], row["mood"]) for row in rows(aclimdb, "aclimdb", part))

    assert found("train") == [("dull", "neg"), ("fine é", "pos"), ("good", "pos")]
    assert found("test") == [("bad", "neg"), ("great", "pos")]
    assert found("unsup") == [("who knows", "unsup")]


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
