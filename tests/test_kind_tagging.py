"""Tags in, entities out: labels, both losses, valid answers, seqeval's numbers, places in the text."""

import json
import random

import numpy as np
import pytest

from bert_mtl.kinds.crf import negative_log_likelihood
from bert_mtl.kinds.head import DataError, LayerContext, make_head
from bert_mtl.kinds.tagging import Tagging, TaggingSettings
from spans.tags import entities, follows, tags_of
from spans.words import words

LABELS = ["person", "location"]
TAGS = ["O", "B-person", "I-person", "B-location", "I-location"]


def make(**settings):
    head = make_head("ner", TaggingSettings(kind="tagging", labels=LABELS, **settings))
    head.layer = head.make_layer(LayerContext(hidden_dim=4, dropout=0.0, seed=0, name="ner", word_embeddings=None))
    return head


HEAD = make()


def sure_of(*names, tags=TAGS, by=0.8):
    """`(words, tags)` probabilities: `by` for the named tags, the rest shared."""
    other = (1 - by) / (len(tags) - 1)
    return np.array([[by if tag == name else other for tag in tags] for name in names], np.float32)


def ids(*names):
    return np.array([TAGS.index(name) for name in names])


# ---- labels ----
def test_tags_are_outside_then_begin_and_inside_of_each_label():
    assert tags_of(LABELS) == TAGS == HEAD.tags


def test_tags_become_ids_by_name_or_place():
    assert HEAD.encode(["O", "B-person", "I-person", "I-person", "B-location"], "a:1") == [0, 1, 2, 2, 3]
    assert HEAD.encode([0, 1, 2, "3"], "a:1") == [0, 1, 2, 3]
    assert HEAD.encode([], "a:1") == []


def test_an_inside_tag_that_continues_nothing_begins_an_entity():
    given = ["I-person", "I-person", "I-location", "O", "I-location", "B-location", "I-person"]
    expected = ["B-person", "I-person", "B-location", "O", "B-location", "B-location", "B-person"]
    assert HEAD.encode(given, "a:1") == ids(*expected).tolist()
    assert entities(given) == entities(expected)


def test_an_unknown_tag_is_refused_with_the_options_and_the_closest():
    with pytest.raises(
        DataError, match=r"^a:7: the label of head ner must be listed; got B-persn\. Options: O, B-pers"
    ):
        HEAD.encode(["O", "B-persn"], "a:7")
    with pytest.raises(DataError, match="Did you mean B-person"):
        HEAD.encode(["B-persn"], "a:7")


def test_a_label_that_is_no_list_is_refused():
    with pytest.raises(DataError, match="^a:7: the label of head ner must be a list of tags; got O O"):
        HEAD.encode("O O", "a:7")


def test_statistics_count_entities_and_words_outside_of_them():
    labels = np.array([0, 1, 2, 2, 1, 3, 0, -1, -1])
    assert HEAD.count(labels) == {"O": 2.0, "person": 2.0, "location": 1.0}


def test_labels_given_as_tags_or_twice_are_faults_of_the_settings():
    faults = TaggingSettings(kind="tagging", labels=["O", "B-a", "I-a", "O"]).faults()
    assert [(key, rule) for key, rule, _ in faults] == [
        ("labels", "hold each label once"),
        ("labels", "name types of entities, without O and the prefixes B- and I-"),
    ]
    assert not TaggingSettings(kind="tagging", labels=["one"]).faults()


# ---- model ----
OUTPUTS = np.log(np.stack([sure_of("O", "B-person", "O"), sure_of("B-location", "O", "O", by=0.4)]))
LABEL_IDS = np.array([[0, -1, 3], [3, -1, -1]], np.int32)
WEIGHTS = (LABEL_IDS >= 0).astype(np.float32)
INPUTS = {"segment_ids": np.array([[1, 1, 1], [2, 2, 0]], np.int32)}


def test_the_loss_is_the_cross_entropy_of_labelled_tokens():
    total, count = HEAD.loss(OUTPUTS, LABEL_IDS, WEIGHTS, INPUTS)
    assert float(total) == pytest.approx(-np.log(0.8) - np.log(0.05) - np.log(0.4), abs=1e-5)
    assert float(count) == 3


def test_without_transitions_a_crf_has_the_same_loss_and_answers():
    crf = make(crf=True)
    total, count = crf.loss(OUTPUTS, LABEL_IDS, WEIGHTS, INPUTS)
    assert float(total) == pytest.approx(-np.log(0.8) - np.log(0.05) - np.log(0.4), abs=1e-5)
    assert float(count) == 3
    np.testing.assert_allclose(crf.answer(OUTPUTS, LABEL_IDS, INPUTS), HEAD.answer(OUTPUTS, LABEL_IDS, INPUTS))
    assert crf.decode([sure_of(*TAGS[:3])]) == HEAD.decode([sure_of(*TAGS[:3])])


def test_a_crfs_loss_reads_its_own_transitions():
    crf = make(crf=True)
    crf.layer.transitions.assign(np.eye(5) * 2)
    chain = np.eye(5, dtype=np.float32) * 2, np.zeros(5, np.float32), np.zeros(5, np.float32)
    expected = negative_log_likelihood(OUTPUTS, LABEL_IDS, WEIGHTS > 0, INPUTS["segment_ids"], *chain)
    assert float(crf.loss(OUTPUTS, LABEL_IDS, WEIGHTS, INPUTS)[0]) == pytest.approx(float(expected))
    assert float(expected) != pytest.approx(-np.log(0.8) - np.log(0.05) - np.log(0.4), abs=0.1)


def test_the_layer_gives_float32_outputs_for_every_token():
    states = np.ones((2, 3, 4), np.float16)
    for head in (HEAD, make(crf=True)):
        outputs = head.layer(states)
        assert outputs.shape == (2, 3, 5) and outputs.dtype == "float32"
        np.testing.assert_allclose(np.sum(head.answer(outputs, None, {}), axis=2), np.ones((2, 3)), atol=1e-6)


# ---- answers ----
def test_what_may_follow_what():
    may = {(a, b) for a, row in zip(TAGS, follows(TAGS), strict=True) for b, yes in zip(TAGS, row, strict=True) if yes}
    assert len(may) == 5 * 3 + 2 * 2
    assert {("B-person", "I-person"), ("I-person", "I-person"), ("O", "B-person")} <= may
    assert not {("O", "I-person"), ("B-location", "I-person"), ("I-location", "I-person")} & may


def test_answers_are_the_likeliest_valid_tags():
    # B then I costs 0.3 / 0.4 against I then I, O then O far more.
    first = [0.1, 0.3, 0.4, 0.1, 0.1]
    second = [0.1, 0.1, 0.6, 0.1, 0.1]
    assert HEAD.decode([np.array([first, second])]) == [["B-person", "I-person"]]
    # Alone, O (0.5) and I-person (0.4): what is valid is B, I (0.2 * 0.4), O, O (0.5 * 0.3), …
    assert HEAD.decode([np.array([[0.5, 0.2, 0.1, 0.1, 0.1], [0.3, 0.1, 0.4, 0.1, 0.1]])]) == [["O", "O"]]


@pytest.mark.parametrize("crf", [False, True])
def test_no_answer_is_ever_invalid(crf):
    head, dice = make(crf=crf), np.random.default_rng(5)
    if crf:
        head.layer.transitions.assign(dice.normal(size=(5, 5)) * 3)
        head.layer.start.assign(dice.normal(size=5) * 3)
    answers = [dice.dirichlet([0.1] * 5, size=length) for length in dice.integers(1, 12, 100)]
    for names in head.decode(answers):
        assert head.encode(names, "") == ids(*names).tolist()


def test_a_crf_decodes_with_its_transitions_and_ends():
    head, even = make(crf=True), np.full((3, 5), 0.2)
    head.layer.start.assign([0, 0, 9, 1, 0])  # I-person may not begin a text, whatever it scores
    head.layer.transitions.assign([[0] * 5] * 3 + [[0, 0, 0, 0, 2]] + [[0] * 5])
    head.layer.end.assign([0, 3, 0, 0, 0])
    assert head.decode([even]) == [["B-location", "I-location", "B-person"]]


def test_a_text_without_words_has_no_tags():
    assert HEAD.decode([np.zeros((0, 5)), sure_of("O")]) == [[], ["O"]]


def test_metrics_by_hand():
    truth = [("B-person", "I-person", "O", "B-location"), ("O", "B-location")]
    answers = [sure_of("B-person", "I-person", "O", "B-person"), sure_of("B-location", "B-location")]
    values = HEAD.metrics(answers, [ids(*each) for each in truth])
    assert values == pytest.approx(
        # found: 2 of the 3 given, and 2 that are none
        {"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 4 / 6}
        | {"loss": -(4 * np.log(0.8) + 2 * np.log(0.05)) / 6}
    )


def test_metrics_of_texts_without_entities_are_zero_and_of_a_crf_without_loss():
    expected = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}
    assert make(crf=True).metrics([sure_of("O", "O")], [ids("O", "O")]) == expected


def test_entity_scores_are_seqevals_also_of_invalid_tags():
    seqeval = pytest.importorskip("seqeval.metrics")
    dice = random.Random(2)
    truth, guess = ([dice.choices(TAGS, k=9) for _ in range(200)] for _ in range(2))
    for names in truth:
        assert [(kind, a, b - 1) for kind, a, b in entities(names)] == seqeval.sequence_labeling.get_entities(names)
    answers = [sure_of(*names) for names in guess]
    values = HEAD.metrics(answers, [ids(*names) for names in truth])
    best = HEAD.decode(answers)
    assert values["f1"] == pytest.approx(seqeval.f1_score(truth, best))
    assert values["precision"] == pytest.approx(seqeval.precision_score(truth, best))
    assert values["recall"] == pytest.approx(seqeval.recall_score(truth, best))
    assert values["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, best))


def test_spans_name_the_places_of_entities_in_the_text():
    text = "In  New York, Ana."
    answer = np.concatenate([sure_of("O"), sure_of("B-location"), sure_of("I-location", by=0.6)])
    answer = np.concatenate([answer, sure_of("O", "B-person", "O")])
    spans = HEAD.spans(answer, words(text), text)
    assert [span.pop("score") for span in spans] == pytest.approx([0.7, 0.8])
    assert spans == [
        {"type": "location", "start": 4, "end": 12, "text": "New York"},
        {"type": "person", "start": 14, "end": 17, "text": "Ana"},
    ]
    assert HEAD.spans(answer[:0], [], "") == []


def test_the_manifest_holds_all_that_decoding_needs():
    assert HEAD.export() == {"kind": "tagging", "tuned": {}, "labels": LABELS, "tags": TAGS, "crf": False}
    crf = make(crf=True)
    crf.layer.end.assign([1, 2, 3, 4, 5])
    known = json.loads(json.dumps(crf.export()))
    assert known["crf"] is True and known["end"] == [1, 2, 3, 4, 5]
    assert np.shape(known["transitions"]) == (5, 5) and known["start"] == [0] * 5


def test_the_head_is_compared_by_entity_f1_and_answers_for_words():
    assert (Tagging.kind, Tagging.level, HEAD.metric, HEAD.label_shape) == ("tagging", "token", "f1", ())
