"""Whatever is done in whatever order, the invariants hold."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import (
    BlockedVersionError,
    FrozenModelError,
    NoPreviousError,
    RevisionConflictError,
)
from trimtab.registry.state import replay

WHO: dict[str, Any] = {"actor": "ada", "reason": "because"}


class RegistryMachine(RuleBasedStateMachine):
    """A model directory beside the simplest description of what it should be."""

    publish_version: Callable[..., int]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.now_ms = 1_000_000
        self.model = ModelDirectory(self.root / "airtime", clock_ms=lambda: self.now_ms)
        self.versions: list[int] = []
        self.published = 0
        self.revision = 0
        self.champion: int | None = None
        self.before: list[int] = []  # earlier champions, latest first
        self.frozen = False
        self.pinned: set[int] = set()
        self.blocked: set[int] = set()
        self.kinds: list[str] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(champion_if_first=st.booleans())
    def publish(self, champion_if_first: bool) -> None:
        version = type(self).publish_version(self.model, champion_if_first=champion_if_first)
        assert version == self.published + 1
        self.published = version
        self.versions.append(version)
        self.kinds.append("published")
        if champion_if_first and self.champion is None and not self.frozen:
            self.lead(version, "promoted")

    def lead(self, version: int, kind: str) -> None:
        """The simplest description of a change of champion."""
        if self.champion is not None:
            self.before.insert(0, self.champion)
        self.champion = version
        self.blocked -= {version} if kind == "promoted" else set()
        self.tidy()
        self.revision += 1
        self.kinds.append(kind)

    def tidy(self) -> None:
        window = [v for v in dict.fromkeys(self.before) if v not in {self.champion, *self.blocked}]
        self.before = window[:5]

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), automatic=st.booleans())
    def promote(self, data: st.DataObject, automatic: bool) -> None:
        version = data.draw(st.sampled_from(self.versions))
        if version == self.champion:
            self.model.promote(version, automatic=automatic, **WHO)
        elif automatic and (self.frozen or version in self.blocked):
            with pytest.raises(FrozenModelError if self.frozen else BlockedVersionError):
                self.model.promote(version, automatic=True, **WHO)
        else:
            self.model.promote(version, automatic=automatic, **WHO)
            self.lead(version, "promoted")

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), off_by=st.sampled_from([-1, 1, 100]))
    def promote_expecting_another_revision(self, data: st.DataObject, off_by: int) -> None:
        version = data.draw(st.sampled_from(self.versions))
        with pytest.raises(RevisionConflictError):
            self.model.promote(version, expected_revision=self.revision + off_by, **WHO)

    @precondition(lambda self: self.versions)
    @rule(to=st.none() | st.integers(1, 8))
    def roll_back(self, to: int | None) -> None:
        if (to or next(iter(self.before), None)) not in self.before:
            with pytest.raises(NoPreviousError):
                self.model.rollback(to=to, **WHO)
        else:
            self.model.rollback(to=to, **WHO)
            self.lead(to or self.before[0], "rolled_back")

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.versions))
        self.model.block(version, **WHO)
        if version not in self.blocked:
            self.kinds.append("blocked")
            previous = self.before[:1]
            self.blocked.add(version)
            self.tidy()
            self.revision += previous != self.before[:1]

    @precondition(lambda self: self.versions)
    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.model.freeze(**WHO) if frozen else self.model.unfreeze(**WHO)
        if frozen != self.frozen:
            self.kinds.append("frozen" if frozen else "unfrozen")
            self.frozen = frozen

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.versions))
        self.model.pin(version, **WHO)
        if version not in self.pinned:
            self.pinned.add(version)
            self.kinds.append("pinned")

    @precondition(lambda self: self.versions)
    @rule(keep=st.integers(1, 4))
    def retain(self, keep: int) -> None:
        kept = {self.champion, *self.before, *self.pinned, *self.versions[-keep:]}
        removed = [version for version in self.versions if version not in kept]
        assert self.model.retain(keep, **WHO) == removed
        self.versions = [version for version in self.versions if version in kept]
        self.blocked -= set(removed)
        self.kinds += ["removed"] * len(removed)

    @precondition(lambda self: self.versions)
    @rule(evidence=st.dictionaries(st.text(), st.floats() | st.text(), max_size=3))
    def record(self, evidence: dict[str, Any]) -> None:
        self.model.record("drift", evidence=evidence, **WHO)
        self.kinds.append("drift")

    @precondition(lambda self: self.versions)
    @rule(torn=st.binary(max_size=50).filter(lambda data: b"\n" not in data))
    def leave_a_torn_line(self, torn: bytes) -> None:
        with (self.model.path / "history.jsonl").open("ab") as file:
            file.write(torn)

    @precondition(lambda self: self.versions)
    @rule()
    def lose_the_copy_of_the_latest_change(self) -> None:
        """As if the last writer of a state had died before it copied its entries."""
        latest = json.loads((self.model.path / "state.json").read_text())["entries"]
        if latest and latest[-1]["sequence"] == len(self.kinds):
            path = self.model.path / "history.jsonl"
            lines = path.read_bytes().splitlines(keepends=True)
            path.write_bytes(b"".join(lines[: len(self.kinds) - len(latest)]))

    @precondition(lambda self: self.versions)
    @rule()
    def lose_the_state(self) -> None:
        self.model.recover()
        (self.model.path / "state.json").unlink()
        self.model.recover()

    @rule(hours=st.integers(-24, 24))
    def set_the_clock(self, hours: int) -> None:
        self.now_ms += hours * 3_600_000

    @rule()
    def give_up_a_staged_version(self) -> None:
        with contextlib.suppress(KeyError), self.model.stage() as staged:
            (staged.path / "model.onnx").touch()
            raise KeyError

    @rule()
    def recover(self) -> None:
        self.model.recover()
        assert self.model.recover() == []

    @invariant()
    def everything_agrees(self) -> None:
        assert self.model.versions() == self.versions
        state = self.model.state()
        assert (state.revision, state.champion) == (self.revision, self.champion)
        assert list(state.champions) == self.before
        assert state.frozen == self.frozen
        assert set(state.pinned) == self.pinned
        assert state.blocked == dict.fromkeys(self.blocked, "because")
        history = self.model.history()
        assert history.valid, history.error
        assert [entry.kind for entry in history.entries] == self.kinds
        assert replay(history.entries).state == state
        assert not list(self.model.path.glob(".tmp-*"))


def test_any_sequence_of_operations_keeps_the_invariants(publish: Callable[..., int]) -> None:
    class Machine(RegistryMachine):
        publish_version = staticmethod(publish)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
