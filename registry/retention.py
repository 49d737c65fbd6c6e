"""Which old versions may go: values in, a decision out. `ModelDirectory.remove` does it.

What answers, may have to answer or was set aside on purpose is never removed, however old it is.
"""

from collections.abc import Iterable

from .state import State


def plan(versions: Iterable[int], state: State, keep: int) -> list[int]:
    """The versions to remove, ascending: all but the newest `keep` and those that are held.

    Versions are as old as their numbers say; a clock may have gone back. ValueError unless `keep`
    is at least 1: the newest version may be on its way to be promoted.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest version must be kept")
    return [version for version in sorted(versions)[:-keep] if not held(version, state)]


def held(version: int, state: State) -> str:
    """Why a version may not be removed, such as "the champion"; empty if it may."""
    if version == state.champion:
        return "the champion"
    if version == state.previous:
        return "the previous champion"
    if version in state.champions:
        return "an earlier champion that a rollback may return to"
    if version == state.challenger:
        return "the challenger"
    if version in state.pinned:
        return "pinned"
    return ""
