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
from trimtab.registry.errors import NoPreviousError, RevisionConflictError
from trimtab.registry.state import State, replay

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
        self.state = State()
        self.kinds: list[str] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(champion_if_first=st.booleans())
    def publish(self, champion_if_first: bool) -> None:
        version = type(self).publish_version(self.model, champion_if_first=champion_if_first)
        assert version == len(self.versions) + 1
        self.versions.append(version)
        self.kinds.append("published")
        if champion_if_first and self.state.champion is None:
            self.state = self.state.promoted(version)
            self.kinds.append("promoted")

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.versions))
        if version != self.state.champion:
            self.state = self.state.promoted(version)
            self.kinds.append("promoted")
        assert self.model.promote(version, **WHO) == self.state

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), off_by=st.sampled_from([-1, 1, 100]))
    def promote_expecting_another_revision(self, data: st.DataObject, off_by: int) -> None:
        version = data.draw(st.sampled_from(self.versions))
        with pytest.raises(RevisionConflictError):
            self.model.promote(version, expected_revision=self.state.revision + off_by, **WHO)

    @precondition(lambda self: self.versions)
    @rule()
    def roll_back(self) -> None:
        if self.state.previous is None:
            with pytest.raises(NoPreviousError):
                self.model.rollback(**WHO)
        else:
            self.state = self.state.rolled_back()
            self.kinds.append("rolled_back")
            assert self.model.rollback(**WHO) == self.state

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
        assert self.model.state() == self.state
        history = self.model.history()
        assert history.valid, history.error
        assert [entry.kind for entry in history.entries] == self.kinds
        assert replay(history.entries).state == self.state
        assert not list(self.model.path.glob(".tmp-*"))


def test_any_sequence_of_operations_keeps_the_invariants(publish: Callable[..., int]) -> None:
    class Machine(RegistryMachine):
        publish_version = staticmethod(publish)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
