"""The e-detector against its definition, exact expectations, and rows that move or do not."""

import itertools
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from trimtab._native.e_detector import EDetector, log_e_value, log_gamma

Floats = NDArray[np.float64]

MASSES = st.lists(st.floats(0.1, 1000), min_size=1, max_size=5)


def log_urn(masses: Floats, counts: Floats) -> float:
    """How likely one order of these counts is, by scipy's logarithm of the gamma function."""
    total, rows = masses.sum(), counts.sum()
    inside = special.gammaln(masses + counts) - special.gammaln(masses)
    return float(inside.sum() + special.gammaln(total) - special.gammaln(total + rows))


def naive_log_e(masses: Floats, counts: Floats, concentration: float) -> float:
    return log_urn(masses * concentration / masses.sum(), counts) - log_urn(masses, counts)


def outcomes(rows: int, groups: int) -> Iterator[Floats]:
    """All counts that so many rows can have."""
    for cuts in itertools.combinations(range(rows + groups - 1), groups - 1):
        edges = np.array([-1, *cuts, rows + groups - 1])
        yield (np.diff(edges) - 1).astype(float)


def orders(counts: Floats) -> float:
    return math.factorial(int(counts.sum())) / math.prod(math.factorial(int(c)) for c in counts)


def test_log_gamma_is_scipys() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([np.exp(random.uniform(-9, 35, 100_000)), np.linspace(0.5, 12, 20_001)])
    expected = special.gammaln(values)
    error = np.abs(log_gamma(values) - expected)
    assert error[values < 100].max() < 4e-14
    assert (error / expected)[values >= 100].max() < 2e-15


@given(MASSES, st.floats(0.5, 500), st.data())
def test_an_e_value_is_the_ratio_of_two_urns(
    masses: list[float], concentration: float, data: st.DataObject
) -> None:
    size = len(masses)
    counts = data.draw(st.lists(st.integers(0, 5000), min_size=size, max_size=size))
    expected = naive_log_e(np.array(masses), np.array(counts, float), concentration)
    found = log_e_value(masses, counts, concentration)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected, rel=1e-10, abs=1e-8)


@pytest.mark.parametrize("masses", [[3.0, 1.0], [0.5, 2.0, 4.0], [1.0, 1.0, 1.0, 6.0], [5.0]])
def test_the_expected_e_value_under_the_urn_is_exactly_one(masses: list[float]) -> None:
    urn = np.array(masses)
    for rows in (1, 2, 5):
        possible = np.array(list(outcomes(rows, len(urn))))
        chances = np.array([orders(counts) * math.exp(log_urn(urn, counts)) for counts in possible])
        assert chances.sum() == pytest.approx(1, abs=1e-12)
        for concentration in (0.7, 4.0, 30.0):
            e_values = np.exp(log_e_value(urn, possible, concentration))
            assert (chances * e_values).sum() == pytest.approx(1, abs=1e-12)


def test_each_check_expects_to_add_one_to_the_sum_whatever_came_before() -> None:
    masses = np.array([4.0, 2.0, 1.0])
    before = [np.array(counts) for counts in ([3.0, 0, 0], [0, 5.0, 1], [2.0, 2, 2], [0, 0, 0])]
    detector = EDetector([masses], 5)
    for counts in before:
        detector.update(counts[None])
    sum_before = math.exp(detector.log_evidence()[0])
    urn = masses + np.sum(before, axis=0)
    expected = 0.0
    for counts in outcomes(4, 3):
        after = EDetector([masses], 5)
        for each in (*before, counts):
            after.update(each[None])
        chance = orders(counts) * math.exp(log_urn(urn, counts))
        expected += chance * math.exp(after.log_evidence()[0])
    assert expected == pytest.approx(sum_before + 1, abs=1e-10)


def kept_after(checks: int) -> list[int]:
    """The checks at which the e-processes began that are left."""
    last = checks - 1
    return [
        start
        for start in range(checks)
        if start == 0 or last - start <= 6 * 2 ** ((start & -start).bit_length() - 1)
    ]


def test_the_evidence_is_the_sum_over_the_starts_that_are_kept() -> None:
    random = np.random.default_rng(1)
    masses = [np.array([30.0, 50, 20]), np.array([200.0, 1]), np.array([4.0, 3, 2, 1]), np.ones(1)]
    detector = EDetector(masses)
    history: list[Floats] = []
    for check in range(150):
        counts = np.zeros((4, 4))
        for feature, each in enumerate(masses):
            rows = int(random.integers(0, 40))
            counts[feature, : len(each)] = random.multinomial(rows, each / each.sum())
        if check > 100:
            counts[0, 0] += 15  # the first feature moves
        detector.update(counts)
        history.append(counts)
        starts = kept_after(check + 1)
        assert (detector.checks, detector.starts) == (check + 1, len(starts))
        if check % 7:
            continue
        for feature, each in enumerate(masses):
            alternative = each * (15 * len(each) / each.sum())  # than the reference alone
            rows_of = np.array(history)[:, feature, : len(each)]
            terms = []
            for start in starts:
                before, since = rows_of[:start].sum(axis=0), rows_of[start:].sum(axis=0)
                terms.append(log_urn(alternative, since) - log_urn(each + before, since))
            expected = special.logsumexp(terms)
            assert detector.log_evidence()[feature] == pytest.approx(expected, abs=1e-9)
    assert detector.log_evidence()[0] > 20


def test_old_e_processes_thin_out_and_the_first_one_stays() -> None:
    detector = EDetector([[5.0, 5.0]])
    for check in range(3000):
        detector.update(np.zeros((1, 2)))
        assert detector.starts == len(kept_after(check + 1))
    assert kept_after(3000)[0] == 0
    assert detector.starts <= 3 * math.log2(3000) + 4
    # without rows each is 1
    assert detector.log_evidence()[0] == pytest.approx(math.log(detector.starts))


@given(st.lists(st.integers(0, 3), max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[int], shuffle: "object") -> None:
    """The product of how well two urns foretell each row is the value of the counts."""
    masses = np.array([10.0, 5.0, 3.0, 2.0])
    expected = float(log_e_value(masses, np.bincount(rows, minlength=4), 8))
    shuffle.shuffle(rows)  # type: ignore[attr-defined]  # hypothesis does not export its type
    null, other, found = masses.copy(), masses * 8 / 20, 0.0
    for row in rows:
        found += math.log(other[row] / other.sum()) - math.log(null[row] / null.sum())
        null[row] += 1
        other[row] += 1
    assert found == pytest.approx(expected, abs=1e-10)


def test_what_two_hosts_counted_for_one_check_adds_up_to_the_bit() -> None:
    random = np.random.default_rng(2)
    batches = random.multinomial(1000, [0.3, 0.3, 0.4], size=(5, 6)).astype(np.uint64)
    whole, merged = EDetector([[3.0, 3, 4]]), EDetector([[3.0, 3, 4]])
    for batch in batches:
        whole.update(batch.sum(axis=0)[None])
        merged.update((batch[4:].sum(axis=0) + batch[:4].sum(axis=0))[None].astype(np.float64))
    assert whole.log_evidence().tolist() == merged.log_evidence().tolist()


def decimal_log_gamma(value: Decimal) -> Decimal:
    """Stirling's series, for values so large that four terms are more than enough."""
    pi = Decimal("3.14159265358979323846264338327950288419716939937510")
    series = 1 / (12 * value) - 1 / (360 * value**3) + 1 / (1260 * value**5)
    return (value - Decimal("0.5")) * value.ln() - value + (2 * pi).ln() / 2 + series


def test_a_million_million_rows_leave_the_logarithm_its_hundredths() -> None:
    masses, counts = [40_000, 60_000], [400_000_500_000, 599_999_500_000]
    with localcontext() as context:
        context.prec = 50

        def urn(of: Sequence[int], with_rows: Sequence[int]) -> Decimal:
            inside = [
                decimal_log_gamma(Decimal(mass + rows)) - decimal_log_gamma(Decimal(mass))
                for mass, rows in zip(of, with_rows, strict=True)
            ]
            total, rows = Decimal(sum(of)), sum(with_rows)
            return sum(inside) + decimal_log_gamma(total) - decimal_log_gamma(total + rows)

        expected = float(urn([4000, 6000], counts) - urn(masses, counts))
    assert float(log_e_value(masses, counts, 10_000)) == pytest.approx(expected, abs=0.01)


def normal_groups(
    random: np.random.Generator, rows: int, groups: int, shifts: Sequence[float]
) -> tuple[Floats, list[Floats]]:
    """Masses between order statistics of a normal sample, and live shares by shift."""
    ranks = np.arange(1, groups) * rows // groups
    edges = np.sort(random.normal(size=rows))[ranks]
    masses = np.diff(ranks + 1, prepend=0, append=rows + 1).astype(float)
    return masses, [np.diff(stats.norm.cdf(edges - d), prepend=0, append=1) for d in shifts]


@pytest.mark.parametrize("reference", [1_000, 10_000])
def test_the_one_shot_form_is_rarely_wrong_however_often_one_looks(reference: int) -> None:
    random = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        masses, [shares] = normal_groups(random, reference, 10, [0])
        live = random.multinomial(100, shares, size=300).cumsum(axis=0)
        wrong += log_e_value(masses, live).max() >= math.log(20)
    # of the probability 0.05, 400 runs have more than 30 wrong ones once in 500
    assert 0 < wrong <= 30


@pytest.mark.parametrize(
    ("shift", "at_most", "step"), [(0.1, 1.3 * 3100, 20), (0.25, 1.3 * 220, 5), (0.5, 1.3 * 80, 5)]
)
def test_the_one_shot_form_sees_a_shift_in_time(shift: float, at_most: float, step: int) -> None:
    random = np.random.default_rng(5)
    delays = []
    for _ in range(200):
        masses, [shares] = normal_groups(random, 10_000, 10, [shift])
        live = random.multinomial(step, shares, size=int(2 * at_most / step)).cumsum(axis=0)
        reached = log_e_value(masses, live) >= math.log(20)
        delays.append(float(reached.argmax() + 1) * step if reached.any() else math.inf)
    assert np.median(delays) <= at_most


@pytest.mark.parametrize("reference", [1_000, 20_000])
def test_checks_between_false_alarms_are_at_least_as_many_as_asked_for(reference: int) -> None:
    random = np.random.default_rng(6)
    drawn = [normal_groups(random, reference, 10, [0]) for _ in range(300)]
    shares = np.array([live for _, [live] in drawn])
    detector = EDetector([masses for masses, _ in drawn])
    lengths = np.full(300, 75.0)  # of those that have no alarm at all
    for check in range(1, 76):
        detector.update(random.multinomial(50, shares))
        alarm = detector.log_evidence() >= math.log(25)
        lengths[alarm] = np.minimum(lengths[alarm], check)
    assert lengths.min() < 75
    assert lengths.mean() >= 25
    assert np.mean(lengths <= 10) <= 10 / 25


def test_a_change_after_a_long_calm_is_seen_about_as_soon_as_one_from_the_start() -> None:
    random = np.random.default_rng(7)
    drawn = [normal_groups(random, 10_000, 10, [0, 0.5]) for _ in range(60)]
    detector = EDetector([masses for masses, _ in drawn])
    delays = np.full(60, math.inf)
    for check in range(230):
        moved = check >= 200
        detector.update(random.multinomial(50, np.array([live[moved] for _, live in drawn])))
        if moved:
            alarm = detector.log_evidence() >= math.log(1000)
            delays[alarm] = np.minimum(delays[alarm], (check - 199) * 50)
    assert np.median(delays) <= 300


def test_reset_forgets_everything() -> None:
    detector = EDetector([[5.0, 5.0], [2.0, 3.0]], 4)
    assert detector.log_evidence().tolist() == [-math.inf, -math.inf]
    detector.update(np.array([[9, 1], [2, 3]]))
    first = detector.log_evidence()
    detector.update(np.array([[0.5, 7], [2, 3]]))  # fractions of rows are legal
    detector.reset()
    assert (detector.checks, detector.starts) == (0, 0)
    assert detector.log_evidence().tolist() == [-math.inf, -math.inf]
    detector.update(np.array([[9, 1], [2, 3]]))
    assert detector.log_evidence().tolist() == first.tolist()
    assert repr(detector) == "EDetector(features=2, groups=2, checks=1, starts=1)"


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 40))
def test_one_group_can_say_nothing(features: int, checks: int, rows: int) -> None:
    detector = EDetector([[7.0]] * features)
    for _ in range(checks):
        detector.update(np.full((features, 1), rows))
    assert detector.log_evidence() == pytest.approx([math.log(checks)] * features, abs=1e-9)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros(2), r"counts have shape \(2,\), expected \(2, 3\)"),
        (np.zeros((2, 2)), r"counts have shape \(2, 2\), expected \(2, 3\)"),
        (np.array([[1, 2, 3], [1, 2, -1]]), "counts are not all finite and at least 0"),
        (np.array([[1, 2, 3], [1, np.nan, 0]]), "counts are not all finite and at least 0"),
        (np.array([[1, 2, 3], [1, 2, 3]]), "feature 1 has 2 groups, counts of more were given"),
    ],
)
def test_counts_that_do_not_fit_are_refused_and_not_counted(counts: Floats, message: str) -> None:
    detector = EDetector([[1.0, 2, 3], [4.0, 5]])
    with pytest.raises(ValueError, match=message):
        detector.update(counts)
    assert detector.checks == 0


@pytest.mark.parametrize(
    ("masses", "concentration", "message"),
    [
        ([], None, "a detector needs at least 1 feature"),
        ([[]], None, r"masses of feature 0 have shape \(0,\), expected \(groups,\)"),
        ([[1.0], [1.0, 0.0]], None, "masses of feature 1 are not all positive and finite"),
        ([[1.0, math.inf]], None, "masses of feature 0 are not all positive and finite"),
        ([[1.0]], 0.0, "concentration must be positive and finite, not 0.0"),
    ],
)
def test_masses_that_make_no_urn_are_refused(
    masses: list[list[float]], concentration: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EDetector(masses, concentration)


@pytest.mark.parametrize("counts", [[1.0, 2.0, 3.0], 5.0, np.zeros((4, 1))])
def test_an_e_value_wants_a_count_for_each_mass(counts: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 2\)"):
        log_e_value([1.0, 2.0], counts)
