"""Who counts in the drift benchmark: Trimtab's histograms, numpy, and four libraries from PyPI.

A run counts every batch of a case once, one after another. A library is called in the fastest way
that was found for row-major batches of float32 whose columns have edges of their own: all but the
vector of KLL sketches take a column a call, and laying the columns one after another first, which
they are charged for, costs them less than it saves.

The libraries are pinned in peers/drift_update.txt and installed into an environment of their own,
whose packages come last on the path: numpy is the one that Trimtab runs with.
"""

import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from drift_cases import Case, Counts, Numbers, Strings
from making import MADE, PEERS, AbsentError, environment
from numpy.typing import NDArray

from trimtab._native.histogram import CategoryHistogram, NumericHistogram

PANES = 10
PANE_ROWS = 1000  # where panes end

_NAME = "drift_update"
_INSTALL = "`--peers` installs it"
_KLL_K = {16: 200, 64: 200, 256: 800}  # its rank error is then less than a bin
_REGULAR_RANGE = (-4.0, 4.0)  # of powers of 2 in all: numpy finds the same bins without rounding
_RIVER_VALUES = 300  # of a batch: it is slow, and costs the same for each


class WrongCountsError(Exception):
    """A contestant that counts something else cannot be compared with; the text says what."""


@dataclass(frozen=True)
class Contestant:
    run: Callable[[], object]
    values: int  # that a run counts
    check: Callable[[int], None]  # after so many runs; WrongCountsError


def requirements() -> list[str]:
    """numpy too: what is compiled for it should be for the one that is used."""
    return [*(PEERS / f"{_NAME}.txt").read_text().split(), f"numpy=={version('numpy')}"]


def install_peers() -> None:
    """Makes the libraries' environment where it is not there. AbsentError."""
    environment(_NAME, requirements())


def find_peers() -> None:
    """Makes the environment's packages importable, after all others, if it was made."""
    folder = MADE / "venvs" / _NAME
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = sysconfig.get_path("purelib", "venv", scheme)
    if (folder / "made-of").exists() and packages not in sys.path:
        sys.path.append(packages)
        importlib.invalidate_caches()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those that are here; "absent" for the others."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def enter(name: str, question: Numbers | Strings, kernel: str) -> Contestant:
    """A contestant of that name for a case. AbsentError."""
    case = question.case
    if case.values == "panes" and name != "trimtab":
        raise AbsentError("has no sliding window")
    if isinstance(question, Strings):
        if name == "trimtab":
            return _trimtab_strings(question)
        if name not in _OF_STRINGS:
            raise AbsentError("does not count strings")
        return _OF_STRINGS[name](question)
    if name == "trimtab":
        return _trimtab(question, kernel)
    return _OF_NUMBERS[name](question)


def _trimtab(question: Numbers, kernel: str) -> Contestant:
    """With panes as the drift monitor has them: two end in a batch of 1,024 rows, and extremes are
    followed. A pane that is open takes all rows else."""
    ends = question.case.values == "panes"
    histogram = NumericHistogram(
        question.edges,
        PANES,
        follow=[ends] * question.case.features,
        _kernel=kernel,  # type: ignore[call-arg]  # private
    )
    batches = question.batches

    def run() -> None:
        for batch in batches:
            histogram.update(batch)

    def run_panes() -> None:
        for batch in batches:
            histogram.update(batch, 0, PANE_ROWS)

    def check(runs: int) -> None:
        counts = histogram.total().astype(np.int64)
        _same("trimtab", question.case, counts[:, :-1], runs * question.expected)
        _same("trimtab", question.case, counts[:, -1], runs * question.missing)

    return Contestant(run_panes if ends else run, question.case.size, check)


def _numpy(question: Numbers) -> Contestant:
    """NaN goes into the last bin, and counts are added up when they are checked: both would cost it
    more in a run."""
    batches, edges, bins = question.batches, question.edges, question.case.bins
    found: list[list[NDArray[np.intp]]] = []

    def run() -> None:
        found.clear()
        for batch in batches:
            columns = zip(edges, np.ascontiguousarray(batch.T), strict=True)
            found.append(
                [
                    np.bincount(of.searchsorted(column, "right"), None, bins)
                    for of, column in columns
                ]
            )

    def check(_: int) -> None:
        _same("numpy", question.case, np.sum(found, axis=0), _missing_last(question))

    return Contestant(run, question.case.size, check)


def _boost_histogram(question: Numbers) -> Contestant:
    """A variable axis a column. What lies outside the outer edges is in bins that it adds there,
    NaN in the upper one, so that they are as many as Trimtab's."""
    bh = _module("boost_histogram", "boost-histogram")
    batches = question.batches
    histograms = [
        bh.Histogram(bh.axis.Variable(edges.astype(np.float64)), storage=bh.storage.Int64())
        for edges in question.edges
    ]

    def run() -> None:
        for batch in batches:
            for histogram, column in zip(histograms, np.ascontiguousarray(batch.T), strict=True):
                histogram.fill(column)

    def check(runs: int) -> None:
        counts = [histogram.values(flow=True) for histogram in histograms]
        _same("boost_histogram", question.case, counts, runs * _missing_last(question))

    return Contestant(run, question.case.size, check)


def _fast_histogram(question: Numbers) -> Contestant:
    """As many bins of one width from -4 to 4: another, easier question. What is outside, and NaN,
    is not counted; counts are added up when they are checked."""
    histogram1d = _module("fast_histogram", "fast-histogram").histogram1d
    case, batches = question.case, question.batches
    if case.values == "lognormal":
        raise AbsentError("has bins of one width only: nearly all values would lie in the first")
    low, high = _REGULAR_RANGE
    expected = []
    for column in np.concatenate(batches).T.astype(np.float64):
        inside = column[(column >= low) & (column < high)]
        bins = (inside - low) * (case.bins / (high - low))
        expected.append(np.bincount(bins.astype(np.intp), minlength=case.bins))
    found: list[list[NDArray[np.float64]]] = []

    def run() -> None:
        found.clear()
        for batch in batches:
            columns = np.ascontiguousarray(batch.T)
            found.append([histogram1d(column, case.bins, _REGULAR_RANGE) for column in columns])

    def check(_: int) -> None:
        _same("fast_histogram", case, np.sum(found, axis=0), expected)

    return Contestant(run, question.case.size, check)


def _datasketches_kll(question: Numbers) -> Contestant:
    """A sketch a column, of any distribution without edges: quantiles of it instead of counts."""
    datasketches = _module("datasketches", "datasketches")
    batches = question.batches
    sketches = [datasketches.kll_floats_sketch(_KLL_K[question.case.bins]) for _ in question.edges]
    error = sketches[0].normalized_rank_error(False)

    def run() -> None:
        for batch in batches:
            for sketch, column in zip(sketches, np.ascontiguousarray(batch.T), strict=True):
                sketch.update(column)

    def check(runs: int) -> None:
        rows = [sketch.n for sketch in sketches]
        below = [
            sketch.get_cdf(edges)[:-1]
            for sketch, edges in zip(sketches, question.edges, strict=True)
        ]
        _check_ranks("datasketches_kll", question, runs, rows, below, error)

    return Contestant(run, question.case.size, check)


def _datasketches_kll_vector(question: Numbers) -> Contestant:
    """The same sketches, all columns in one call."""
    datasketches = _module("datasketches", "datasketches")
    batches, case = question.batches, question.case
    k = _KLL_K[case.bins]
    sketches = datasketches.vector_of_kll_floats_sketches(k, case.features)
    error = datasketches.kll_floats_sketch(k).normalized_rank_error(False)

    def run() -> None:
        for batch in batches:
            sketches.update(batch)

    def check(runs: int) -> None:
        rows = sketches.get_n().tolist()
        below = [sketches.get_cdf(edges, [j])[0][:-1] for j, edges in enumerate(question.edges)]
        _check_ranks("datasketches_kll_vector", question, runs, rows, below, error)

    return Contestant(run, question.case.size, check)


def _river(question: Numbers) -> Contestant:
    """`river.sketch.Histogram` of as many bins, which moves them as values come, one value a call:
    some values of the first column, as Python floats already."""
    sketch = _module("river.sketch", "river")
    if question.missing.any():
        raise AbsentError("does not take NaN")
    column = np.concatenate([batch[:, 0] for batch in question.batches])
    values = column[:_RIVER_VALUES].tolist()
    histogram = sketch.Histogram(max_bins=question.case.bins)

    def run() -> None:
        for value in values:
            histogram.update(value)

    def check(runs: int) -> None:
        total = sum(each.count for each in histogram)
        _same("river", question.case, total, runs * len(values))

    return Contestant(run, len(values), check)


def _trimtab_strings(question: Strings) -> Contestant:
    histogram = CategoryHistogram(question.kept, [[] for _ in question.kept], PANES)
    tensors, rows = question.raw, question.case.rows

    def run() -> None:
        for raw in tensors:
            histogram.update(raw, rows)

    def check(runs: int) -> None:
        counts = histogram.total().astype(np.int64)
        _same("trimtab", question.case, counts[:, : question.case.bins], runs * question.expected)

    return Contestant(run, question.case.size, check)


def _numpy_strings(question: Strings) -> Contestant:
    """A dict of codes and bincount, over values that are Python's bytes already."""
    case = question.case
    codes = [{name: code for code, name in enumerate(names)}.__getitem__ for names in question.kept]
    found: list[list[NDArray[np.intp]]] = []

    def run() -> None:
        found.clear()
        for batch in question.columns:
            columns = zip(codes, batch, strict=True)
            found.append(
                [np.bincount(list(map(code, column)), None, case.bins) for code, column in columns]
            )

    def check(_: int) -> None:
        _same("numpy", case, np.sum(found, axis=0), question.expected)

    return Contestant(run, question.case.size, check)


def _boost_histogram_strings(question: Strings) -> Contestant:
    """A category axis a column, over values that are arrays of numpy's str already."""
    bh = _module("boost_histogram", "boost-histogram")
    histograms = [
        bh.Histogram(
            bh.axis.StrCategory([name.decode() for name in names]), storage=bh.storage.Int64()
        )
        for names in question.kept
    ]
    batches = [
        [np.array([value.decode() for value in column]) for column in batch]
        for batch in question.columns
    ]

    def run() -> None:
        for columns in batches:
            for histogram, column in zip(histograms, columns, strict=True):
                histogram.fill(column)

    def check(runs: int) -> None:
        counts = [histogram.values() for histogram in histograms]
        _same("boost_histogram", question.case, counts, runs * question.expected)

    return Contestant(run, question.case.size, check)


_OF_NUMBERS: dict[str, Callable[[Numbers], Contestant]] = {
    "numpy": _numpy,
    "boost_histogram": _boost_histogram,
    "fast_histogram": _fast_histogram,
    "datasketches_kll": _datasketches_kll,
    "datasketches_kll_vector": _datasketches_kll_vector,
    "river": _river,
}
_OF_STRINGS: dict[str, Callable[[Strings], Contestant]] = {
    "numpy": _numpy_strings,
    "boost_histogram": _boost_histogram_strings,
}
NAMES = ("trimtab", *_OF_NUMBERS)


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AbsentError(f"{package} is not here ({error}): {_INSTALL}") from error


def _missing_last(question: Numbers) -> Counts:
    """What is expected of those who put NaN into the last bin."""
    expected = question.expected.copy()
    expected[:, -1] += question.missing
    return expected


def _same(name: str, case: Case, found: object, expected: object) -> None:
    if not np.array_equal(np.asarray(found), np.asarray(expected)):
        raise WrongCountsError(f"{case.name}: {name} counted {found}, numpy {expected}")


def _check_ranks(
    name: str,
    question: Numbers,
    runs: int,
    rows: list[int],
    below: list[list[float]],
    error: float,
) -> None:
    """Three times the error that it states for 99 of 100 values is as good as never exceeded."""
    present = question.expected.sum(axis=1)
    _same(name, question.case, rows, runs * present)
    shares = question.expected[:, :-1].cumsum(axis=1) / present[:, None]
    apart = float(np.abs(np.array(below) - shares).max())
    if not apart <= 3 * error:
        raise WrongCountsError(f"{question.case.name}: {name} is off by {apart} of {error} stated")
