"""The protocols of other servers over real uvicorn: their forms, their numbers, their errors."""

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from local_server import running
from test_bundle import head, saved_model, write_bundle  # noqa: F401

from serving.bundle import load_bundle
from serving.engines import open_engine
from serving.signatures import signatures

TEXT_HEADS = {
    "imdb": head("classification", [2], labels=["neg", "pos"], task="imdb"),
    "topic": head("classification", [3], labels=["art", "sport", "world"], task="topic"),
    "tones": head("multilabel", [2], labels=["calm", "loud"], thresholds=[0.5, 0.5], task="tones"),
    "stars": head("regression", [], task="stars"),
    "names": head("tagging", [3], tags=["O", "B-a", "I-a"], task="names", level="token", reads="words"),
    "words": head("mlm", [2], task="words", level="mask", reads="masks"),
}
HEADS = TEXT_HEADS | {
    "follows": head("classification", [2], labels=["no", "yes"], task="follows", reads="pair"),
    "alike": head("similarity", [3], task="alike", reads="apart"),
}
# "good film": [CLS] 2, good 6, film 8, [SEP] 3, in all 19: the dummy scores (19 + label) % labels + 1.
IMDB, TOPIC = [2 / 3, 1 / 3], [2 / 6, 3 / 6, 1 / 6]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of a server around the dummy with heads of all kinds, in two versions; two need a folder of bundles."""
    folder = tmp_path_factory.mktemp("versions")
    for name in ("1", "second"):
        write_bundle(folder / name, heads=HEADS, max_length=16)
    with running(folder) as address:
        yield address


@pytest.fixture(scope="module")
def texts_only(tmp_path_factory) -> Iterator[str]:
    """The same with one head."""
    with running(write_bundle(tmp_path_factory.mktemp("one"), heads={"imdb": HEADS["imdb"]})) as address:
        yield address


def near(numbers: object) -> object:
    """Numbers of float32, nested or not."""
    if isinstance(numbers, dict):
        return {key: near(value) for key, value in numbers.items()}
    if isinstance(numbers, list) and numbers and isinstance(numbers[0], list):
        return [near(value) for value in numbers]
    return pytest.approx(numbers, abs=1e-6)


def refused(response: httpx.Response, status: int) -> str:
    """The message of an error in the form that TensorFlow Serving and KServe share."""
    assert response.status_code == status
    assert list(response.json()) == ["error"] and isinstance(response.json()["error"], str)
    return response.json()["error"]


# --- TensorFlow Serving


def test_rows_and_columns_hold_what_the_saved_models_signature_gives(saved_model):  # noqa: F811
    import tensorflow as tf

    # The signature reads the length of a text where the model reads ids: in these both are the same, 10, 11 and 29.
    texts = ["a         ", "good       ", "very good film               "]
    loaded = tf.saved_model.load(str(saved_model / "saved_model"))
    bundle = load_bundle(saved_model)
    with running(saved_model, open_engine("savedmodel", bundle)) as address:
        url = f"{address}/v1/models/tiny"
        for name in ("text", "serving_default"):
            expected = loaded.signatures[name](texts=tf.constant(texts))["imdb"].numpy().tolist()
            rows = httpx.post(f"{url}:predict", json={"signature_name": name, "instances": texts}).json()
            columns = httpx.post(f"{url}:predict", json={"signature_name": name, "inputs": {"texts": texts}}).json()
            assert rows == {"predictions": near(expected)} and columns == {"outputs": near(expected)}
        metadata = httpx.get(f"{url}/metadata").json()["metadata"]["signature_def"]["signature_def"]
    said = metadata["text"]
    signature = loaded.signatures["text"]
    inputs = {name: spec.shape.as_list() for name, spec in signature.structured_input_signature[1].items()}
    assert {name: _shape(spec) for name, spec in said["inputs"].items()} == inputs == {"texts": [None]}
    assert list(signature.structured_outputs) == list(said["outputs"]) == ["imdb"]
    assert rows["predictions"][0] == [0.9, 0.099999994]  # float32 in as few digits as it has


def _shape(spec: dict) -> list[int | None]:
    sizes = [int(dim["size"]) for dim in spec["tensor_shape"]["dim"]]
    return [None if size == -1 else size for size in sizes]


def test_several_heads_are_named_in_every_row_or_column(address):
    url = f"{address}/v1/models/tiny:predict"
    texts = ["good film", "film"]
    rows = httpx.post(url, json={"instances": texts}).json()["predictions"]
    assert [sorted(row) for row in rows] == [["alike", "imdb", "names", "stars", "tones", "topic"]] * 2
    assert rows[0]["imdb"] == near(IMDB) and rows[0]["topic"] == near(TOPIC) and rows[0]["stars"] == 1.0
    # Each word's tags stand at its token: good 6 and film 8 leave 0 and 2 when divided by 3; film alone has one word.
    assert rows[0]["names"] == near([[1 / 6, 2 / 6, 3 / 6], [3 / 6, 1 / 6, 2 / 6]])
    assert rows[1]["names"] == near([[3 / 6, 1 / 6, 2 / 6], [0.0, 0.0, 0.0]])
    columns = httpx.post(url, json={"inputs": texts}).json()["outputs"]
    assert columns == {name: [row[name] for row in rows] for name in rows[0]}


def test_words_are_those_that_white_space_parts_and_cut_ones_are_zeros(address):
    body = {"signature_name": "task_names", "instances": ["good! [a]film  " + "a " * 20]}
    (found,) = httpx.post(f"{address}/v1/models/tiny:predict", json=body).json()["predictions"]
    # Their first tokens: good 6, [ 12, then a 5 for the 8 of the 14 tokens that are left behind "good ! [ a ] film"
    assert found == near([[1 / 6, 2 / 6, 3 / 6]] * 2 + [[3 / 6, 1 / 6, 2 / 6]] * 8 + [[0.0, 0.0, 0.0]] * 12)


def test_pairs_are_objects_and_what_is_read_apart_gives_two_vectors(address):
    url = f"{address}/v1/models/tiny/versions/second:predict"
    row = {"texts": "good", "texts_b": "bad"}
    body = {"signature_name": "pair", "instances": [row]}
    (found,) = httpx.post(url, json=body).json()["predictions"]
    # [CLS] 2 good 6 [SEP] 3 bad 7 [SEP] 3 make 21; apart they make 11 and 12, which leave 2 and 0 when divided by 3
    assert found == {"follows": near([2 / 3, 1 / 3]), "alike": near([[3 / 6, 1 / 6, 2 / 6], [1 / 6, 2 / 6, 3 / 6]])}
    task = {"signature_name": "task_follows", "inputs": {"texts": ["good"], "texts_b": ["bad"]}}
    assert httpx.post(url, json=task).json() == {"outputs": near([[2 / 3, 1 / 3]])}


def test_bodies_of_any_content_type_and_texts_in_base64_are_read(texts_only):
    url = f"{texts_only}/v1/models/tiny:predict"
    encoded = {"b64": base64.b64encode(b"good film").decode()}
    for instance in ("good film", encoded, {"texts": "good film"}, {"texts": encoded}):
        response = httpx.post(url, content=json.dumps({"instances": [instance]}))
        assert response.json() == {"predictions": near([IMDB])}


def test_classify_gives_labels_with_scores_and_regress_values(address):
    url = f"{address}/v1/models/tiny"
    examples = [{"texts": "good film"}, {"texts": ["film"]}]  # film 8 makes 13
    for name in ("topic", "task_topic"):
        response = httpx.post(f"{url}:classify", json={"signature_name": name, "examples": examples})
        scores = [["art", *TOPIC[:1]], ["sport", TOPIC[1]], ["world", TOPIC[2]]]
        found = response.json()["results"]
        assert [label for label, _ in found[0]] == [label for label, _ in scores] == ["art", "sport", "world"]
        assert [score for _, score in found[0]] == near(TOPIC) and found[0] == found[1]
    values = httpx.post(f"{url}:regress", json={"examples": examples})  # the only head with a value
    assert values.json() == {"results": [1.0, 1.0]}
    pairs = {"signature_name": "follows", "context": {"texts": "good"}, "examples": [{"texts_b": "bad"}]}
    assert httpx.post(f"{url}:classify", json=pairs).json()["results"][0][1] == ["yes", near(1 / 3)]
    message = refused(httpx.post(f"{url}:classify", json={"examples": examples}), 400)
    assert message.startswith("signature_name must have one head of the kind classification or multilabel, or be the")
    assert message.endswith("(imdb, topic, tones, follows); serving_default has 3")


def test_status_tells_of_all_versions_or_one_and_serves_clients_of_openai_too(address):
    url = f"{address}/v1/models/tiny"
    first, second = (
        {"version": version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        for version in ("1", "second")
    )
    found = httpx.get(url).json()
    assert found["model_version_status"] == [second, first]
    assert (found["id"], found["object"], found["owned_by"]) == ("tiny", "model", "bert_mtl")
    assert httpx.get(f"{url}/versions/1").json() == {"model_version_status": [first]}
    assert refused(httpx.get(f"{url}/versions/7"), 404) == "Could not find version '7' of model tiny"
    assert refused(httpx.get(f"{address}/v1/models/huge"), 404) == "model must be tiny; got 'huge'"
    for ask in (httpx.get, httpx.post):
        assert refused(ask(f"{url}/labels/stable:predict"), 404).startswith("no version has labels here; ask for /v1/")


def test_metadata_describes_the_signatures_of_the_saved_model(address):
    found = httpx.get(f"{address}/v1/models/tiny/versions/1/metadata").json()
    assert found["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
    said = found["metadata"]["signature_def"]["signature_def"]
    assert sorted(said) == [
        "pair", "serving_default", "task_alike", "task_follows", "task_imdb", "task_names", "task_stars", "task_tones",
        "task_topic", "text",
    ]  # fmt: skip
    assert said["serving_default"] == said["text"]
    assert said["text"]["inputs"] == {
        "texts": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                  "name": "texts"}
    }  # fmt: skip
    shapes = {name: _shape(spec) for name, spec in said["text"]["outputs"].items()}
    assert shapes == {
        "imdb": [None, 2], "topic": [None, 3], "tones": [None, 2], "stars": [None], "names": [None, None, 3],
        "alike": [None, 3],
    }  # fmt: skip
    assert {name: _shape(spec) for name, spec in said["pair"]["outputs"].items()} == {
        "follows": [None, 2],
        "alike": [None, 2, 3],
    }


PREDICT_FAULTS = {
    "neither": ({}, "the body must have either the key instances or the key inputs"),
    "both": ({"instances": ["a"], "inputs": ["a"]}, "the body must have either the key instances or the key inputs"),
    "no instance": ({"instances": []}, "instances must not be empty"),
    "a number": ({"instances": ["a", 3]}, "instances.1 must be a text; got 3"),
    "a list": ({"instances": [["a"]]}, "instances.0 must be a text; got ['a']"),
    "mixed": ({"instances": [{"texts": "a"}, "b"]}, "instances.1 must be an object with texts; got 'b'"),
    "another key": ({"instances": [{"text": "a"}]}, "instances.0 must be an object with texts; got {'text': 'a'}"),
    "base64": ({"instances": [{"b64": "*"}]}, "instances.0.b64 must be UTF-8 text in base64; got '*'"),
    "a column": ({"inputs": {"texts": "a"}}, "inputs.texts must be a list of texts; got 'a'"),
    "columns": ({"inputs": {"texts_b": ["a"]}}, "inputs must be an object with the keys texts; got ['texts_b']"),
    "signature": ({"signature_name": "x" * 99, "instances": ["a"]}, "signature_name must be one of serving_default, "),
    "ids": ({"signature_name": "ids", "instances": ["a"]}, "signature_name must be one that takes texts; ids takes"),
    "no text": ({"instances": ["a", " "]}, "texts.1 must not be empty"),
    "no list": ({"instances": "a"}, "instances: Input should be a valid list; got 'a'"),
    "no object": ([], "the body: Input should be a valid dictionary or object to extract fields from; got []"),
}


@pytest.mark.parametrize("body, message", PREDICT_FAULTS.values(), ids=PREDICT_FAULTS)
def test_a_wrong_predict_is_told_what_and_where(texts_only, body, message):
    told = refused(httpx.post(f"{texts_only}/v1/models/tiny:predict", json=body), 400)
    assert told.startswith(message) and len(told) < 400


@pytest.mark.parametrize("path", ["/v1/models/tiny:predict", "/v2/models/tiny/infer"])
@pytest.mark.parametrize("body", [b'{"inputs": [', b"", b'{"\xff', b"[" * 9_000, b'"\\ud800"', b"3"])
def test_a_body_that_is_no_json_is_answered_in_the_protocols_form(texts_only, path, body):
    assert refused(httpx.post(texts_only + path, content=body), 400)
    assert httpx.get(f"{texts_only}/v2/health/ready").status_code == 200


def test_limits_keys_and_unknown_paths_speak_each_protocols_form(tmp_path):
    key = "0123456789abcdef"
    with running(write_bundle(tmp_path), keys=[key]) as address:
        plain = [f"{address}/v1/models/tiny:predict", f"{address}/v2/models/tiny/infer"]
        for url in (*plain, f"{address}/v1/embeddings"):
            answers = [
                httpx.post(url, json={}),
                httpx.post(url, content=b"x" * 10_001, headers={"authorization": f"Bearer {key}"}),
            ]
            for answer, status in zip(answers, (401, 413), strict=True):
                if url in plain:
                    assert refused(answer, status)
                else:
                    assert answer.status_code == status
                    assert list(answer.json()["error"]) == ["message", "type", "param", "code"]
        assert refused(httpx.get(f"{address}/v2/nothing", headers={"authorization": f"Bearer {key}"}), 404)


KEYS = [
    "instances", "inputs", "signature_name", "examples", "context", "texts", "texts_b", "b64", "name", "shape",
    "datatype", "data", "outputs", "parameters", "id", "model", "input", "encoding_format", "dimensions",
]  # fmt: skip
WORDS = ["good", "", "\ud800", "texts", "texts_b", "imdb", "task_follows", "BYTES", "tiny", "base64", "\x00", "a" * 101]


def anything(chance: random.Random, depth: int = 0) -> object:
    """Any JSON of the protocols' words."""
    kind = chance.choice("ssnifboa" if depth < 4 else "sni")
    simple = {"s": chance.choice(WORDS), "n": None, "i": chance.choice([0, 1, -1, 2**70]), "f": 1e300, "b": True}
    if kind in simple:
        return simple[kind]
    values = [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): value for value in values} if kind == "o" else values


def test_whatever_is_sent_is_answered_and_never_as_a_failure_of_the_server(address):
    chance = random.Random(1)
    paths = [f"/v1/models/tiny:{verb}" for verb in ("predict", "classify", "regress")]
    paths += ["/v2/models/tiny/infer", "/v1/embeddings"]
    with httpx.Client(base_url=address) as client:
        for number in range(500):
            path = paths[number % len(paths)]
            body = {chance.choice(KEYS): anything(chance) for _ in range(4)} | {"model": "tiny"}
            response = client.post(path, content=json.dumps(body))
            assert response.status_code in (200, 400, 404, 413), body
            assert len(response.content) < 3000 or response.status_code == 200
        assert client.post(paths[0], json={"inputs": ["good film"]}).status_code == 200


# --- KServe


def infer(address: str, *inputs: dict, **more: object) -> httpx.Response:
    return httpx.post(f"{address}/v2/models/tiny/infer", json={"inputs": list(inputs)} | more)


def tensor(name: str, *texts: object, **more: object) -> dict:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | more


def test_answers_are_tensors_of_probabilities_labels_values_and_json(address):
    found = infer(address, tensor("texts", "good film", "a " * 20), id="42").json()
    assert (found["id"], found["model_name"], found["model_version"]) == ("42", "tiny", "second")
    outputs = {output.pop("name"): output for output in found["outputs"]}
    assert outputs["imdb"]["shape"] == [2, 2] and outputs["imdb"]["datatype"] == "FP32"
    assert outputs["imdb"]["data"][:2] == near(IMDB)
    assert outputs["imdb"]["parameters"] == {"labels": '["neg", "pos"]'}
    assert outputs["imdb_label"] == {"shape": [2], "datatype": "BYTES", "data": ["neg", "neg"]}
    assert outputs["tones_chosen"]["datatype"] == "BOOL" and outputs["tones_chosen"]["data"][:2] == [True, False]
    assert outputs["stars"] == {"shape": [2], "datatype": "FP32", "data": [1.0, 1.0]}
    assert outputs["alike"]["shape"] == [2, 3] and outputs["alike"]["data"][:3] == near(TOPIC)
    assert json.loads(outputs["words"]["data"][0]) == {"masks": []} and outputs["names"]["datatype"] == "BYTES"
    assert outputs["truncated"] == {"shape": [2], "datatype": "BOOL", "data": [False, True]}
    assert "follows" not in outputs


def test_only_the_outputs_that_are_asked_for_are_given_in_their_order(address):
    wanted = [{"name": "alike_similarity"}, {"name": "follows_label"}]
    body = {"outputs": wanted, "parameters": {"anything": 3}}
    one = {"shape": [1, 1], "data": [["bad"]]}
    found = infer(address, tensor("texts_b", **one), tensor("texts", "good"), **body).json()
    apart = np.array([3, 1, 2]) @ np.array([1, 2, 3]) / 36
    assert found["outputs"] == [
        {"name": "alike_similarity", "shape": [1], "datatype": "FP32", "data": [near(float(apart))]},
        {"name": "follows_label", "shape": [1], "datatype": "BYTES", "data": ["no"]},
    ]
    assert "id" not in found


def test_health_and_metadata_are_those_of_the_protocol(address):
    assert httpx.get(f"{address}/v2").json()["extensions"] == httpx.get(f"{address}/v2/").json()["extensions"] == []
    assert httpx.get(f"{address}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{address}/v2/health/ready").json() == {"live": True, "ready": True}
    for path in ("", "/versions/1"):
        assert httpx.get(f"{address}/v2/models/tiny{path}/ready").json() == {"name": "tiny", "ready": True}
        found = httpx.get(f"{address}/v2/models/tiny{path}").json()
        assert found["versions"] == ["second", "1"] and found["platform"] == "bert_mtl_bundle"
        assert found["inputs"] == [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("texts", "texts_b")]
        assert {"name": "topic", "datatype": "FP32", "shape": [-1, 3]} in found["outputs"]
        assert {"name": "follows_label", "datatype": "BYTES", "shape": [-1]} in found["outputs"]
    assert refused(httpx.get(f"{address}/v2/models/huge/ready"), 404) == "model must be tiny; got 'huge'"
    assert refused(httpx.get(f"{address}/v2/models/tiny/versions/7/ready"), 404).startswith("version must be one that")


INFER_FAULTS = {
    "name": ([tensor("text", "a")], {}, "inputs.0.name must be texts or texts_b, each once; got 'text'"),
    "twice": ([tensor("texts", "a")] * 2, {}, "inputs.1.name must be texts or texts_b, each once; got 'texts'"),
    "none": ([], {}, "inputs must hold a tensor texts"),
    "datatype": ([tensor("texts", "a", datatype="FP32")], {}, "inputs.0.datatype must be BYTES; got 'FP32'"),
    "rank": ([tensor("texts", "a", shape=[1, 2])], {}, "inputs.0.shape must be [n] or [n, 1]; got [1, 2]"),
    "count": ([tensor("texts", "a", shape=[2])], {}, "inputs.0.data must hold as many texts as shape says, 2; got 1"),
    "negative": ([tensor("texts", "a", shape=[-1])], {}, "inputs.0.shape.0: Input should be greater than or"),
    "number": ([tensor("texts", "a", 3)], {}, "inputs.0.data.1 must be a text; got 3"),
    "nested": ([tensor("texts", ["a"])], {}, "inputs.0.data.0 must be a text; got ['a']"),
    "output": (
        [tensor("texts", "a")], {"outputs": [{"name": "x"}]},
        "outputs.0.name must be one of imdb, imdb_label, truncated; got 'x'",
    ),
    "binary in": (
        [tensor("texts", parameters={"binary_data_size": 5}, shape=[1])], {}, "inputs.0.data must hold the texts: the"
    ),
    "binary out": (
        [tensor("texts", "a")], {"parameters": {"binary_data_output": True}}, "parameters must not ask for binary data"
    ),
    "pairs": ([tensor("texts", "a"), tensor("texts_b", "a")], {}, "texts_b must be left out: the model reads single"),
}  # fmt: skip


@pytest.mark.parametrize("inputs, more, message", INFER_FAULTS.values(), ids=INFER_FAULTS)
def test_a_wrong_inference_is_told_what_and_where(texts_only, inputs, more, message):
    assert refused(infer(texts_only, *inputs, **more), 400).startswith(message)


def test_binary_tensors_behind_the_json_are_refused_in_words(texts_only):
    body = json.dumps({"inputs": [tensor("texts", parameters={"binary_data_size": 5}, shape=[1])]}).encode()
    headers = {"inference-header-content-length": str(len(body)), "content-type": "application/octet-stream"}
    response = httpx.post(f"{texts_only}/v2/models/tiny/infer", content=body + b"\x01\0\0\0a", headers=headers)
    assert refused(response, 400) == "the body must be JSON alone: the binary tensor data extension is not offered"


# --- OpenAI


@pytest.fixture(scope="module")
def client(address) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def of_length_one(mean_id: float, count: int) -> np.ndarray:
    """The dummy's vector of a text: the mean of its ids, with the last layer's number 2 and each place's added."""
    vector = mean_id + 2 + np.arange(count)
    return vector / np.linalg.norm(vector)


def test_the_openai_client_gets_vectors_of_length_one_in_floats_and_base64(client):
    count = len(client.embeddings.create(model="tiny", input="good film").data[0].embedding)
    expected = of_length_one((2 + 6 + 8 + 3) / 4, count)
    for options in ({}, {"encoding_format": "float"}, {"dimensions": count, "user": "somebody"}):
        found = client.embeddings.create(model="tiny", input=["good film", "good"], **options)
        assert [each.index for each in found.data] == [0, 1]
        assert found.data[0].embedding == pytest.approx(expected, abs=1e-6)
        assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("tiny@second", 7, 7)
    raw = client.embeddings.with_raw_response.create(model="tiny@1", input="good film", encoding_format="base64")
    content = json.loads(raw.text)
    vector = np.frombuffer(base64.b64decode(content["data"][0]["embedding"]), "<f4")
    assert vector == pytest.approx(expected, abs=1e-6) and content["model"] == "tiny@1"


def test_token_ids_may_have_the_frame_of_special_tokens_or_not(client):
    texts = client.embeddings.create(model="tiny", input=["good film"]).data[0].embedding
    for ids in ([6, 8], [[6, 8]], [[2, 6, 8, 3]]):
        assert client.embeddings.create(model="tiny", input=ids).data[0].embedding == texts
    assert len(client.embeddings.create(model="tiny", input=[[6, 8], [5]]).data) == 2


def test_models_are_listed_with_their_versions_and_found_by_their_id(client):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@second", "tiny@1"]
    found = client.models.retrieve("tiny@1")
    assert (found.id, found.object, found.owned_by) == ("tiny@1", "model", "bert_mtl")
    assert client.models.retrieve("tiny").created == found.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("huge")


@pytest.mark.parametrize(
    "body, message, param",
    [
        ({"input": "a"}, "model: Field required", "model"),
        ({"model": "tiny", "input": ""}, "input.0 must not be empty", "input"),
        ({"model": "tiny", "input": []}, "input must hold at least one text; got none", "input"),
        ({"model": "tiny", "input": ["a"] * 51}, "input must be at most 50 in a request; got 51", "input"),
        ({"model": "tiny", "input": ["a", 3]}, "input: Input should be a text, token ids, or", "input"),
        ({"model": "tiny", "input": [True]}, "input: Input should be a text, token ids, or", "input"),
        ({"model": "tiny", "input": "a", "dimensions": 1}, "dimensions must be 8: the model was", "dimensions"),
        ({"model": "tiny", "input": "a", "encoding_format": "int8"}, "encoding_format: Input", "encoding_format"),
        ({"model": "tiny", "input": "a", "truncate": True}, "the body: Only the keys model, input, encoding", None),
    ],
)  # fmt: skip
def test_a_wrong_embedding_is_refused_in_openais_form(client, address, body, message, param):
    response = httpx.post(f"{address}/v1/embeddings", json=body)
    error = response.json()["error"]
    assert response.status_code == (413 if "at most" in message else 400)
    assert error.pop("message").startswith(message)
    assert error == {"type": "invalid_request_error", "param": param, "code": None}


def test_an_unknown_model_or_version_is_said_in_openais_words(client):
    for model in ("gpt", "tiny@7"):
        with pytest.raises(openai.NotFoundError) as error:
            client.embeddings.create(model=model, input="a")
        assert (error.value.code, error.value.type) == ("model_not_found", "invalid_request_error")


# --- signatures


def test_signatures_are_those_of_the_saved_model_that_the_exporter_writes(tmp_path: Path):
    only_masks = load_bundle(write_bundle(tmp_path / "masks", heads={"words": HEADS["words"]})).manifest
    assert signatures(only_masks) == {}
    pairs = {name: HEADS[name] for name in ("follows", "words")}
    found = signatures(load_bundle(write_bundle(tmp_path / "pairs", heads=pairs)).manifest)
    assert {name: (one.inputs, list(one.heads)) for name, one in found.items()} == {
        name: (("texts", "texts_b"), ["follows"]) for name in ("serving_default", "pair", "task_follows")
    }
