"""Where a version comes from, in lines that a person reads: made of its manifest's lineage.

What a lineage holds is the trainer's choice, and that of others whose versions were imported. So
nothing here depends on it: a name and its value become a line whatever they are, and what is nested
a line of its own. `--json` shows all of it as it is.

Pure.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .report_tables import moment

_SHOWN = 8  # items of a list; the rest are counted
_SHOWN_TEXT = 60  # characters of a text within a line
_UNITS = (("_us", " µs"), ("_s", " s"), ("_mb", " MB"), ("_bytes", " bytes"))


def lineage_lines(lineage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, text) of each line, by name; what is empty or not known has none."""
    for name, value in sorted(lineage.items()):
        yield from _lines(name, value)


def _lines(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        nested = {key: each for key, each in value.items() if isinstance(each, Mapping | list)}
        if name.endswith("_us") or _one_line(value):
            nested = {}
        plain = {key: each for key, each in value.items() if key not in nested}
        unit = next((unit for ending, unit in _UNITS if name.endswith(ending)), "")
        told = [text for key, each in plain.items() if (text := _told(key, each, unit))]
        if told:
            yield _words(name, bool(unit)), ", ".join(told)
        for key, each in nested.items():
            yield from _lines(f"{name} {key}", each)
    elif text := _text(value, name):
        timed = name.endswith("_ms")
        yield _words(name, timed), text


def _one_line(value: Mapping[str, Any]) -> bool:
    """Whether everything nested in it is a mapping of a few plain values."""
    return all(
        isinstance(each, Mapping) and not any(isinstance(v, Mapping | list) for v in each.values())
        for each in value.values()
    )


def _told(key: str, value: Any, unit: str = "") -> str:
    """A value with its name, as part of a line."""
    if isinstance(value, Mapping):
        inner = ", ".join(text for k, v in value.items() if (text := _told(k, v, unit)))
        return f"{_words(key)} ({inner})" if inner else ""
    if value is True:
        return _words(key)
    if value is False:
        return f"not {_words(key)}"
    own = next((u for ending, u in _UNITS if key.endswith(ending)), unit)
    text = _text(value, key)
    if not text:
        return ""
    known = own if isinstance(value, int | float) else ""
    return f"{_words(key, bool(own) or key.endswith('_ms'))} {text}{known}"


def _words(name: str, unit: bool = False) -> str:
    """`time_from_ms` as `time from`: the unit is said with the value."""
    if unit:
        name = name.removesuffix("_ms")
        for ending, _ in _UNITS:
            name = name.removesuffix(ending)
    return name.replace("_", " ")


def _text(value: Any, name: str = "") -> str:
    """A value by itself; empty if there is nothing to tell."""
    match value:
        case None | "":
            return ""
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_ms"):
            return f"{moment(value)} UTC" if value else ""
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case float():
            return f"{value:.4g}" if math.isfinite(value) else ""
        case str() if name.endswith("sha256"):
            return value[:16]
        case str():
            return value if len(value) <= _SHOWN_TEXT else f"{value[:_SHOWN_TEXT]} …"
        case Mapping():
            return ", ".join(text for key, each in value.items() if (text := _told(key, each)))
        case Sequence():
            shown = [text for each in value[:_SHOWN] if (text := _text(each))]
            more = len(value) - _SHOWN
            mark = "; " if any(isinstance(each, Mapping) for each in value) else ", "
            return mark.join(shown) + (f" and {more} more" if more > 0 else "")
    return str(value)
