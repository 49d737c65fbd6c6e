from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from trimtab._native.reference import ReferenceProfile
from trimtab.trainer.data_quality import (
    DataQualityError,
    Finding,
    categorical_association,
    check,
    numeric_association,
    report_text,
)
from trimtab.trainer.dataset import Dataset, LabelFacts
from trimtab.trainer.export import signature_of
from trimtab.trainer.recipe import Recipe
from trimtab.trainer.reference_profile import outputs_of, reference_profile

FrameMaker = Callable[..., pl.DataFrame]
RecipeMaker = Callable[..., Recipe]
ROWS = 2_000
NEWEST = slice(1_600, None)


@pytest.fixture(scope="module")
def reference(make_frame: FrameMaker, make_recipe: RecipeMaker) -> ReferenceProfile:
    recipe = make_recipe()
    window = Dataset.from_frame(recipe, make_frame(ROWS))
    signature = signature_of(recipe, ())
    outputs = outputs_of(signature, np.zeros(ROWS), ())
    return reference_profile(signature, window, outputs)


@pytest.fixture
def judged(
    make_frame: FrameMaker, make_recipe: RecipeMaker, reference: ReferenceProfile
) -> Callable[..., tuple[Finding, ...]]:
    """What is found in rows like the reference's, after a change of the newest fifth."""

    def judge(change: Callable[[pl.DataFrame], pl.DataFrame], **recipe: Any) -> Any:
        frame = make_frame(ROWS, seed=7)
        older, newest = frame.head(1_600), frame.tail(400)
        changed = pl.concat([older, change(newest).select(frame.columns)], how="vertical_relaxed")
        return check(Dataset.from_frame(make_recipe(**recipe), changed), reference)

    return judge


def test_rows_like_those_of_the_reference_are_clean(judged: Callable[..., Any]) -> None:
    assert judged(lambda frame: frame) == ()


@pytest.mark.parametrize(
    ("change", "column", "what"),
    [
        (lambda f: f.with_columns(size=pl.lit(None, pl.Float64)), "size", "missing"),
        (lambda f: f.with_columns(colour=pl.lit(None, pl.String)), "colour", "missing"),
        (lambda f: f.with_columns(size=pl.col("size") * 1_000), "size", "far_out"),
        (lambda f: f.with_columns(size=pl.lit(10.0)), "size", "constant"),
        (lambda f: f.with_columns(colour=pl.lit("red")), "colour", "constant"),
        (lambda f: f.with_columns(colour=pl.lit("x_") + pl.col("colour")), "colour", "unseen"),
        (lambda f: f.rename({"size": "age", "age": "size"}), "size", "swapped"),
    ],
)
def test_a_column_that_broke_among_the_newest_rows_stops_the_training_by_its_name(
    judged: Callable[..., Any],
    change: Callable[[pl.DataFrame], pl.DataFrame],
    column: str,
    what: str,
) -> None:
    with pytest.raises(DataQualityError) as caught:
        judged(change)
    broken = [finding for finding in caught.value.findings if finding.severity == "error"]
    assert [(finding.column, finding.what) for finding in broken] == [(column, what)]
    assert f"{column}: " in str(caught.value) and "\n" not in str(caught.value)
    # Where the recipe says so it is only told.
    told = judged(change, quality="report")
    assert [finding.to_dict() for finding in told] == [
        finding.to_dict() for finding in caught.value.findings
    ]


@pytest.mark.parametrize(
    ("change", "column", "what"),
    [
        (lambda f: f.with_columns(size=pl.col("size") + 7), "size", "out_of_range"),
        (
            lambda f: f.with_columns(
                size=pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise(pl.col("size"))
            ),
            "size",
            "missing",
        ),
        (lambda f: f.with_columns(colour=pl.col("colour").replace("red", "rosé")), "colour", ""),
    ],
)
def test_a_world_that_moves_is_no_broken_column(
    judged: Callable[..., Any],
    change: Callable[[pl.DataFrame], pl.DataFrame],
    column: str,
    what: str,
) -> None:
    [finding] = judged(change)
    assert (finding.column, finding.what, finding.severity) == (column, what or "unseen", "warning")


def test_a_column_that_tells_the_target_is_a_suspect_and_a_constant_one_is_told(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    frame = make_frame(ROWS).with_columns(
        after=pl.col("value") ** 3, flat=pl.lit(1.0), band=pl.col("value").cast(pl.Int64)
    )
    recipe = make_recipe(numeric=["size", "after", "flat"])
    findings = check(Dataset.from_frame(recipe, frame), None)
    assert [(finding.column, finding.what) for finding in findings] == [
        ("after", "leakage"),
        ("flat", "constant_window"),
    ]
    assert {finding.severity for finding in findings} == {"warning"}
    assert report_text(findings).startswith("warning: after: tells the target almost perfectly")


@pytest.mark.parametrize("classes", [2, 5])
def test_associations_are_near_one_for_a_perfect_column_alone(classes: int) -> None:
    random = np.random.default_rng(0)
    target: NDArray[np.int64] = random.integers(0, classes, 5_000)
    noise: NDArray[np.float64] = random.normal(size=5_000)
    assert numeric_association(target.astype(np.float64), target, True) == 1.0
    assert numeric_association(-target + 0.2 * random.random(5_000), target, True) > 0.999
    assert numeric_association(target + noise, target, True) < 0.95
    assert numeric_association(noise, target, True) < 0.6
    names = np.array(["a", "b", "c", "d", "e"], object)
    assert categorical_association(names[target], target, True) == 1.0
    assert categorical_association(random.permutation(names[target]), target, True) < 0.1


def test_associations_with_numbers_see_monotone_ties_and_names_of_rows() -> None:
    random = np.random.default_rng(0)
    target = random.normal(size=3_000)
    assert numeric_association(np.exp(5 * target), target, False) == pytest.approx(1.0)
    assert numeric_association(target + random.normal(size=3_000), target, False) < 0.8
    with_holes = np.where(random.random(3_000) < 0.5, np.nan, target)
    assert numeric_association(with_holes, target, False) == pytest.approx(1.0)
    assert numeric_association(np.full(3_000, np.nan), target, False) == 0.0
    steps = np.round(target)
    assert categorical_association(steps.astype(str), steps, False) == pytest.approx(1.0)
    own_name = np.array([str(number) for number in range(3_000)], object)
    assert categorical_association(own_name, target, False) == 0.0


def test_a_rare_class_does_not_make_every_column_pure() -> None:
    target = np.zeros(10_000, int)
    target[:5] = 1
    names = np.array(["a", "b"], object)[np.arange(10_000) % 2]
    assert categorical_association(names, target, True) == 0.0


def test_labels_of_one_class_alone_are_noticed(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    data = Dataset.from_frame(make_recipe("binary"), make_frame(ROWS, task="binary"))
    some = LabelFacts(rows=250, served_classes={1: 250}, file_classes={0: 900, 1: 850})
    with pytest.raises(DataQualityError, match="all 250 labels of served rows are 1, of the files"):
        check(replace(data, labels=some), None)
    few = replace(some, rows=30, served_classes={1: 30})
    assert check(replace(data, labels=few), None) == ()
    both = replace(some, served_classes={0: 1, 1: 249})
    assert check(replace(data, labels=both), None) == ()
    usual = replace(some, file_classes={0: 1, 1: 999})
    assert check(replace(data, labels=usual), None) == ()


def test_rows_that_were_logged_twice_are_a_warning(
    make_frame: FrameMaker, make_recipe: RecipeMaker
) -> None:
    data = Dataset.from_frame(make_recipe(), make_frame(ROWS))
    [finding] = check(replace(data, labels=LabelFacts(rows=ROWS, duplicates=500)), None)
    assert (finding.what, finding.number, finding.severity) == ("duplicates", 0.2, "warning")
