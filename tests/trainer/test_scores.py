import numpy as np
import pytest
from sklearn import metrics

from trimtab.trainer.scores import paired_difference, score


def test_every_metric_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth, guess = random.normal(size=500), random.normal(size=500)
    assert score("mae", truth, guess) == pytest.approx(metrics.mean_absolute_error(truth, guess))
    assert score("rmse", truth, guess) == pytest.approx(
        metrics.root_mean_squared_error(truth, guess)
    )
    labels = random.choice(["a", "b", "c"], 500).astype(object)
    probabilities = random.dirichlet(np.ones(3), 500)
    classes = ("a", "b", "c")
    assert score("log_loss", labels, probabilities, classes) == pytest.approx(
        metrics.log_loss(labels, probabilities)
    )
    best = np.array(classes)[probabilities.argmax(axis=1)]
    assert score("accuracy", labels, probabilities, classes) == pytest.approx(
        metrics.accuracy_score(labels, best)
    )
    binary = random.integers(0, 2, 500)
    rounded = np.round(random.random(500), 1)  # many equal scores
    two = np.column_stack([1 - rounded, rounded])
    assert score("roc_auc", binary, two, (0, 1)) == pytest.approx(
        metrics.roc_auc_score(binary, rounded)
    )


def test_a_class_that_the_model_does_not_know_costs_but_is_no_error() -> None:
    truth = np.array(["a", "new"], dtype=object)
    found = score("log_loss", truth, np.array([[1.0, 0.0], [1.0, 0.0]]), ("a", "b"))
    assert 5 < found < 20


def test_an_auc_of_one_class_is_not_defined() -> None:
    assert np.isnan(score("roc_auc", np.zeros(5), np.full((5, 2), 0.5), (0, 1)))


def test_the_improvement_is_positive_for_the_better_model_whatever_the_metrics_direction() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=2_000)
    bad, good = truth + random.normal(size=2_000), truth + 0.5 * random.normal(size=2_000)
    found = paired_difference("mae", truth, bad, good)
    assert found.low > 0
    assert found.improvement == pytest.approx(found.first - found.second)
    classes = truth > 0

    def probabilities(scores: np.ndarray) -> np.ndarray:
        positive = 1 / (1 + np.exp(-scores))
        return np.column_stack([1 - positive, positive])

    better = paired_difference(
        "roc_auc", classes, probabilities(bad), probabilities(good), (False, True)
    )
    assert better.low > 0
    assert better.second > better.first


def test_the_interval_of_a_mean_is_that_of_the_blocks_means() -> None:
    random = np.random.default_rng(0)
    truth, first, second = random.normal(size=(3, 1_000))
    found = paired_difference("mae", truth, first, second, blocks=20)
    blocks = (np.abs(first - truth) - np.abs(second - truth)).reshape(20, 50).mean(axis=1)
    half = 2.0930 * blocks.std(ddof=1) / np.sqrt(20)  # Student's t with 19 degrees of freedom
    assert found.improvement == pytest.approx(blocks.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-4)


def test_two_equal_models_differ_surely_by_nothing_about_as_often_as_promised() -> None:
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        noise = np.repeat(random.normal(size=(2, 100)), 10, axis=1)  # ten alike in a row
        found = paired_difference("mae", np.zeros(1_000), noise[0], noise[1], blocks=50)
        missed += not found.low <= 0 <= found.high
    assert 0.02 < missed / 400 < 0.09


def test_a_handful_of_rows_still_has_an_interval() -> None:
    truth = np.arange(25.0)
    found = paired_difference("mae", truth, truth + 1, truth + 1)
    assert (found.improvement, found.low, found.high) == (0, 0, 0)
