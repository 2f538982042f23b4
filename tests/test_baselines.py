"""Linear baselines: what they see of texts, and that they answer as heads do."""

import numpy as np
import pytest

from bert_mtl.baselines import Features, teach
from bert_mtl.kinds import head_settings, make_head

TEXTS = [("a good film",), ("good and great",), ("a bad film",), ("bad and dull",)] * 5
ASKED = [("good",), ("bad",)]


def head(kind, **settings):
    return make_head("h", head_settings({"kind": kind, **settings}))


def test_words_chinese_characters_and_marks_are_features_alone_and_in_pairs():
    features = Features([("It's 電影!",)])
    alone = {name for name in features.words.get_feature_names_out() if " " not in name}
    assert alone == {"it", "'", "s", "電", "影", "!"}
    assert "電 影" in features.words.get_feature_names_out()
    assert Features([("!?",), ("…",)])([("?",)]).shape == (1, 4)  # a text without a word has features too


def test_a_pair_is_seen_as_both_texts_their_difference_and_their_cosine():
    features = Features([("one two", "one"), ("three", "three")])
    count = len(features.words.vocabulary_)
    seen = features([("one two", "one two"), ("three", "one")]).toarray()
    assert seen.shape == (2, 3 * count + 1)
    np.testing.assert_allclose(seen[:, -1], [1, 0], atol=1e-12)
    np.testing.assert_allclose(seen[0, 2 * count : 3 * count], 0, atol=1e-12)
    np.testing.assert_allclose(seen[1, 2 * count : 3 * count], np.abs(seen[1, :count] - seen[1, count : 2 * count]))


def test_classification_gets_probabilities_and_none_for_a_label_never_seen():
    labels = np.array([2, 2, 0, 0] * 5)
    answers = teach(head("classification", labels=["bad", "never", "good"]), TEXTS, labels)(ASKED)
    assert answers.argmax(axis=1).tolist() == [2, 0] and answers[:, 1].tolist() == [0, 0]
    np.testing.assert_allclose(answers.sum(axis=1), 1)


def test_multilabel_gets_a_probability_for_each_label_and_constants_where_there_is_nothing_to_learn():
    labels = np.array([[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]] * 5)
    answers = teach(head("multilabel", labels=["good", "bad", "no", "all"]), TEXTS, labels)(ASKED)
    assert (answers >= 0.5).tolist() == [[True, False, False, True], [False, True, False, True]]
    assert answers[:, 2:].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(("bounds", "highest"), [({}, 4.9), ({"minimum": 0, "maximum": 4}, 4.0)])
def test_regression_gets_values_within_its_bounds(bounds, highest):
    texts = [("good", "good"), ("bad", "good"), ("dull", "dull"), ("great", "dull")] * 50
    guess = teach(head("regression", **bounds), texts, np.array([5.0, 0, 5, 0] * 50))
    alike, unlike = guess([("good", "good"), ("bad", "good")])
    assert alike == pytest.approx(highest, abs=0.1) and unlike == pytest.approx(0, abs=0.1)


def test_where_all_labels_are_the_same_and_for_other_kinds_there_is_none():
    ones = np.ones(20)
    assert teach(head("classification", labels=["a", "b"]), TEXTS, ones.astype(int)) is None
    assert teach(head("multilabel", labels=["a"]), TEXTS, ones.astype(int)[:, None]) is None
    assert teach(head("regression"), TEXTS, ones) is None
    assert teach(head("vector", dim=1), TEXTS, ones[:, None]) is None
