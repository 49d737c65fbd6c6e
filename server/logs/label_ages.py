"""How many labels became known when: what tells the young ones from the mature ones.

Only counts are kept, in buckets that may span a 32nd of their age: labels a minute old are told
apart by two seconds, those a month old by a day. So some hundred buckets do at any rate of labels
and for any maturity, and a setting that is changed later finds its counts here.

A bucket is as young as its newest label. Labels may thus mature late, by a 32nd of the maturity at
most, and never early: what counts as mature is mature. Age is counted from the newest label, so
the clock may stand still or go back. Nothing here is safe for threads; the owner sees to that.
"""

from bisect import bisect_left
from collections.abc import Iterable

_FINENESS = 32
_FEW = 64  # buckets that are not worth a compaction


class _Bucket:
    """So many labels, known from `first` to `latest`."""

    __slots__ = ("count", "first", "latest")

    def __init__(self, first: int, latest: int, count: int) -> None:
        self.first = first
        self.latest = latest
        self.count = count


class LabelAges:
    """See the module. Times are milliseconds of one clock, in any order."""

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []  # apart from each other, oldest first
        self._limit = _FEW

    def __repr__(self) -> str:
        return f"LabelAges({len(self)} buckets)"

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, known_ms: int, count: int) -> None:
        """So many labels became known then."""
        buckets = self._buckets
        at = bisect_left(buckets, known_ms, key=lambda bucket: bucket.latest)
        if at < len(buckets) and buckets[at].first <= known_ms:
            buckets[at].count += count
            return
        buckets.insert(at, _Bucket(known_ms, known_ms, count))
        if len(buckets) > self._limit:
            self._compact()
            self._limit = max(_FEW, 2 * len(self._buckets))

    def young(self, now_ms: int, maturity_ms: int) -> int:
        """Labels that did not become known `maturity_ms` ago or earlier."""
        count = 0
        for bucket in reversed(self._buckets):
            if bucket.latest + maturity_ms <= now_ms:
                break
            count += bucket.count
        return count

    def dump(self) -> list[list[int]]:
        """Plain values that `load` takes."""
        return [[bucket.first, bucket.latest, bucket.count] for bucket in self._buckets]

    @classmethod
    def load(cls, dumped: Iterable[Iterable[int]]) -> "LabelAges":
        """TypeError or ValueError where it is no dump."""
        ages = cls()
        ages._buckets = [_Bucket(*map(int, bucket)) for bucket in dumped]
        ages._limit = max(_FEW, 2 * len(ages))
        return ages

    def _compact(self) -> None:
        """Joins neighbours as far as their age allows, the newest ones first."""
        newest = self._buckets[-1].latest
        kept: list[_Bucket] = []
        for older in reversed(self._buckets):
            if kept:
                bucket = kept[-1]
                if (bucket.latest - older.first) * _FINENESS <= newest - bucket.latest:
                    bucket.first = older.first
                    bucket.count += older.count
                    continue
            kept.append(older)
        self._buckets = kept[::-1]
