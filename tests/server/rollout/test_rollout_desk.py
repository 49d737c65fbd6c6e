"""Roll-outs with a real registry and a real control loop; versions answer as the test says."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.loop_fakes import FakeRunner, FakeServable, batch, publish_version, wait_until
from tests.server.loop.test_control_loop import POLICY, RECIPE, World
from trimtab.registry.manifest import Signature, TensorSpec
from trimtab.server.config import PromotionConfig
from trimtab.server.errors import PreconditionError
from trimtab.server.inference.observation import ObservedBatch
from trimtab.server.logs.label_log import Label
from trimtab.server.loop.training_run import TrainingResult
from trimtab.server.rollout.status import RolloutStatus

CONFIG = PromotionConfig(
    bake_rows=1_000,
    shadow_rows=1_000,
    canary_rows=400,
    canary_steps=(0.1, 0.5),
    min_rows=400,
    label_rows=100,
    shadow_s=3600,
    canary_s=3600,
    bake_s=3600,
    mirror_cpu=1.0,
)

Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def failing(temp: NDArray[np.float32]) -> NDArray[np.float32]:
    raise ValueError("no")


def constant(temp: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros_like(temp)


def noisy(temp: NDArray[np.float32]) -> NDArray[np.float32]:
    return (temp * 2 + np.sin(temp * 50) / 10).astype(np.float32)


class RolloutWorld(World):
    """A model whose truth is twice `temp`; version 1 says so."""

    def __init__(self, path: Path, **promotion: Any) -> None:
        self.chunks = 0
        self.answers: dict[int, Answer] = {}
        config = dataclasses.replace(CONFIG, **promotion)
        self.promotion = promotion
        path.mkdir(exist_ok=True)
        drift = dataclasses.replace(POLICY.drift, enabled=False)
        super().__init__(path, dataclasses.replace(POLICY, drift=drift, promotion=config))

    def changed_tap(self, version: int) -> None:
        """The canary is loaded, and observed as all are."""
        servable = FakeServable("m", version, reference_path=self.reference_path)
        self.taps[version] = self.loop.tap_for(servable)

    def train(self, answer: Answer) -> int:
        """A training that publishes a version which answers so; it has passed its gates."""
        version = len(self.directory.versions()) + 1
        self.promoter.runners[version] = FakeRunner(answer, reference_path=self.reference_path)
        future = self.loop.train("m", "ann", "wanted")
        future.result(20)
        assert publish_version(self.registry, actor="trimtab") == version
        self.trainer.trainings[-1].finish(TrainingResult("published", "MAE 1 against 2", version))
        self.settle()
        return version

    def promote(self, answer: Answer) -> int:
        """A person publishes a version and promotes it."""
        version = publish_version(self.registry)
        self.promoter.runners[version] = FakeRunner(answer, reference_path=self.reference_path)
        self.promoter.promote("m", version, actor="ann", reason="by hand")
        self.settle()
        return version

    def chunk(
        self, rows: int = 200, version: int = 0, *, labels: bool = False, settle: bool = True
    ) -> None:
        """Rows are asked for, ten a request, answered, and labelled if wanted."""
        version = version or self.model.observed.champion.version
        runner = self.promoter.runners.get(version) or FakeRunner()
        self.chunks += 1
        prefix = f"chunk-{self.chunks}"
        numeric = self.random.normal(size=(rows, 2)).astype(np.float32)
        asked = batch(numeric, version=version, calls=[10] * (rows // 10), prefix=prefix)
        tap = self.taps.get(version) or self.taps[1]
        try:
            outputs = runner.run(asked.inputs, runner.output_names)
        except ValueError:
            for part in np.split(numeric, rows // 10):
                inputs = batch(part, version=version).inputs
                tap.failed("m", version, inputs, 10)
        else:
            tap(ObservedBatch("m", version, asked.calls, rows, asked.inputs, outputs))
        if settle:
            self.settle()
        if labels:
            truth = numeric[:, 0] * 2
            self.model.submit_labels(
                [
                    Label(f"{prefix}-{row // 10}", row % 10, number=float(truth[row]))
                    for row in range(rows)
                ],
                1,
            )
            self.settle()

    @property
    def status(self) -> RolloutStatus:
        status: RolloutStatus = self.model.rollout.status()
        return status

    @property
    def champion(self) -> int | None:
        return self.directory.state().champion

    def since(self, kind: str) -> list[str]:
        """The history from the last entry of a kind on."""
        kinds = self.history
        return kinds[len(kinds) - 1 - kinds[::-1].index(kind) :]

    def restart(self) -> "RolloutWorld":
        self.loop.stop()
        return RolloutWorld(self.registry.path, **self.promotion)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., RolloutWorld]]:
    made: list[RolloutWorld] = []

    def build(**promotion: Any) -> RolloutWorld:
        made.append(RolloutWorld(tmp_path, **promotion))
        return made[-1]

    yield build
    for each in made:
        each.loop.stop()


Build = Callable[..., RolloutWorld]


def test_a_version_is_promoted_baked_and_stays(world: Build) -> None:
    w = world()
    version = w.train(noisy)
    assert w.champion == version and w.status.phase == "bake"
    assert (w.status.version, w.status.against, w.status.rows_wanted) == (2, 1, 1_000)
    assert sorted(w.promoter.held) == [1, 2]
    for _ in range(4):
        w.chunk()
    assert w.status.phase == "bake" and w.status.rows_compared == 800
    assert "800 of 1,000 rows" in w.status.reason
    w.chunk()
    assert (w.status.phase, w.status.verdict, w.champion) == ("none", "pass", 2)
    assert w.since("promoted") == ["promoted", "rollout_started", "rollout_verdict"]
    assert w.promoter.held == [] and w.model.observed.mirror is None
    verdict = w.last("rollout_verdict")
    assert verdict.evidence["rows_compared"] == 1_000
    assert verdict.evidence["checks"]["latency"].startswith("pass")
    assert "0 of 100 requests failed on it alone" in verdict.reason
    assert w.directory.history().entries[-1].evidence["phase"] == "bake"


@pytest.mark.parametrize(
    ("answer", "labels", "words"),
    [
        (failing, False, "20 of 20 requests failed on it alone"),
        (constant, False, "PSI"),
        (lambda temp: temp * 2 + 1, True, "absolute error 1 against 0"),
        (lambda temp: temp * np.float32(np.nan), False, "20 of 20 requests failed on it alone"),
    ],
)
def test_a_bake_that_fails_rolls_back_blocks_and_says_why(
    world: Build, answer: Answer, labels: bool, words: str
) -> None:
    w = world()
    version = w.train(answer)
    assert w.champion == version
    for _ in range(2):
        if w.champion == version:
            w.chunk(400 if not words.startswith("20 of") else 200, labels=labels)
    state = w.directory.state()
    assert state.champion == 1 and state.previous is None
    assert words in state.blocked[version]
    assert w.since("rollout_verdict") == ["rollout_verdict", "blocked", "rolled_back"]
    back = w.last("rolled_back")
    assert words in back.reason and back.actor == "trimtab"
    assert back.evidence["automatic"] is True and back.evidence["verdict"] == "fail"
    assert (w.status.phase, w.status.verdict) == ("none", "fail") and w.promoter.held == []
    assert w.model.rollout.failed_bakes[0] == 1


def test_a_slow_version_is_rolled_back(world: Build) -> None:
    w = world(max_latency_ms=0.2)
    numbers = np.random.default_rng(0).normal(size=50_000)

    def slow(temp: NDArray[np.float32]) -> NDArray[np.float32]:
        np.sort(numbers)
        return noisy(temp)

    w.train(slow)
    w.chunk(800)
    assert w.champion == 1 and "times as long as the other's" in w.last("rolled_back").reason


def test_after_taking_versions_back_trainings_are_held_back(world: Build) -> None:
    w = world()
    for failures in (1, 2):
        w.train(constant)
        w.chunk(400)
        assert w.champion == 1 and w.model.rollout.failed_bakes[0] == failures
    (w.directory.path / "trimtab.toml").write_text(RECIPE + "[trigger]\nevery_s = 60\n")
    w.label(60)
    w.wall.advance(6 * 3600)
    w.tick()
    waiting = w.last("waiting")
    assert "breaker" in str(waiting.evidence["lacking"]) and len(w.trainer.trainings) == 2
    again = w.restart()
    try:
        assert again.model.rollout.failed_bakes[0] == 2, "a restart does not forget it"
        again.train(lambda temp: temp * 2)
        for _ in range(5):
            again.chunk(labels=True)
        assert again.model.rollout.failed_bakes[0] == 0
    finally:
        again.loop.stop()


def test_what_a_person_promoted_is_watched_and_left_to_a_person(world: Build) -> None:
    w = world()
    version = w.promote(constant)
    assert w.status.phase == "bake"
    w.chunk(400)
    assert (w.champion, w.status.verdict) == (version, "fail")
    assert w.since("promoted") == ["promoted", "rollout_started", "rollout_verdict", "held"]
    assert "a person promoted it" in w.last("held").reason
    assert not w.directory.state().blocked


def test_what_a_person_promoted_is_taken_back_if_they_said_so_before(world: Build) -> None:
    w = world(undo_manual=True)
    version = w.promote(constant)
    w.chunk(400)
    assert w.champion == 1 and version in w.directory.state().blocked


def test_a_shadow_that_passes_is_promoted_and_baked(world: Build) -> None:
    w = world(policy="shadow")
    version = w.train(noisy)
    assert (w.champion, w.status.phase, w.status.version) == (1, "shadow", version)
    for _ in range(5):
        w.chunk()
    assert (w.champion, w.status.phase, w.status.against) == (version, "bake", 1)
    assert w.since("published") == [
        "published", "rollout_started", "rollout_verdict", "promoted", "rollout_started",
    ]  # fmt: skip
    promoted = w.last("promoted")
    assert "the shadow of version 2: pass: 1,000 rows compared" in promoted.reason
    assert "MAE 1 against 2" in promoted.reason, "why it was trained is kept"
    assert promoted.evidence["training_id"] == "m-1" and promoted.evidence["rows_compared"] == 1_000


@pytest.mark.parametrize(
    ("answer", "labels", "words"),
    [
        (failing, False, "requests failed on it alone"),
        (constant, False, "PSI"),
        (lambda temp: temp * 2 + 1, True, "absolute error 1 against 0"),
    ],
)
def test_a_shadow_that_fails_is_refused(
    world: Build, answer: Answer, labels: bool, words: str
) -> None:
    w = world(policy="shadow")
    version = w.train(answer)
    for _ in range(2):
        w.chunk(400, labels=labels)
    assert w.champion == 1 and w.status.phase == "none"
    assert w.since("rollout_verdict") == ["rollout_verdict", "blocked", "refused"]
    assert words in w.last("refused").reason and version in w.directory.state().blocked
    assert w.model.rollout.failed_bakes[0] == 0


def test_a_shadow_waits_for_labels_of_a_model_that_gets_some(world: Build) -> None:
    w = world(policy="shadow")
    w.label(1)
    w.train(noisy)
    for _ in range(5):
        w.chunk()
    assert w.status.phase == "shadow" and "0 of 100 labelled rows" in w.status.reason
    assert w.model.observed.mirror is None, "enough rows were compared"
    w.chunk(labels=True)
    assert w.status.phase == "shadow", "those rows were not compared"
    w.model.submit_labels([Label("chunk-1-0", row, number=0.0) for row in range(10)], 1)
    w.model.submit_labels(
        [Label(f"chunk-2-{c}", r, number=0.0) for c in range(9) for r in range(10)], 1
    )
    w.settle()
    assert (w.status.phase, w.champion) == ("bake", 2)


@pytest.mark.parametrize(
    ("policy", "kinds", "champion"),
    [
        ("hold", ["rollout_verdict", "held"], 1),
        ("promote", ["rollout_verdict", "promoted", "rollout_started"], 2),
        ("rollback", ["rollout_verdict", "refused"], 1),
    ],
)
def test_a_shadow_without_enough_rows_by_the_deadline(
    world: Build, policy: str, kinds: list[str], champion: int
) -> None:
    w = world(policy="shadow", on_inconclusive=policy)
    w.train(noisy)
    w.chunk(200)
    w.wall.advance(3599)
    w.settle()
    assert w.status.phase == "shadow"
    w.wall.advance(1)
    w.settle()
    assert w.since("rollout_verdict") == kinds and w.champion == champion
    verdict = w.last("rollout_verdict")
    assert verdict.evidence["verdict"] == "inconclusive"
    assert "only 200 rows were compared, 400 are judged" in verdict.reason
    assert not w.directory.state().blocked


@pytest.mark.parametrize(("policy", "champion"), [("hold", 2), ("promote", 2), ("rollback", 1)])
def test_a_bake_without_enough_rows_by_the_deadline(
    world: Build, policy: str, champion: int
) -> None:
    w = world(on_inconclusive=policy)
    w.train(noisy)
    w.wall.advance(3600)
    w.settle()
    assert (w.status.verdict, w.champion) == ("inconclusive", champion)


def test_a_canary_answers_more_and_more_and_is_promoted(world: Build) -> None:
    w = world(policy="canary")
    version = w.train(noisy)
    assert w.promoter.splits == [(version, 0.1)]
    assert (w.status.phase, w.status.share, w.champion) == ("canary", 0.1, 1)
    w.changed_tap(version)
    w.chunk(400)  # the champion's: mirrored to the canary, which has answered nothing yet
    assert w.status.share == 0.1 and "it answered 0 of 400 rows" in w.status.reason
    w.chunk(400, version)
    assert (w.promoter.splits[-1], w.status.share) == ((version, 0.5), 0.5)
    w.chunk(400, version)
    assert w.promoter.splits[-1] == (None, 0.0)
    assert (w.champion, w.status.phase) == (version, "bake")
    assert w.since("published")[1:4] == ["rollout_started", "rollout_step", "rollout_verdict"]
    assert "answers 50% of the requests from now on; with 10%" in w.last("rollout_step").reason


def test_a_canary_that_fails_answers_nothing_any_more(world: Build) -> None:
    w = world(policy="canary")
    version = w.train(failing)
    w.changed_tap(version)
    w.chunk(200, version)
    assert w.promoter.splits == [(version, 0.1), (None, 0.0)]
    assert w.champion == 1 and w.last("refused").version == version


def test_a_champion_that_fails_does_not_keep_its_cure_from_passing(world: Build) -> None:
    w = world(policy="shadow")
    w.promoter.runners[1] = FakeRunner(failing, reference_path=w.reference_path)
    w.train(noisy)
    for _ in range(4):
        w.chunk()
    assert w.status.phase == "shadow" and w.status.requests_failed == {2: 0, 1: 80}
    w.chunk()
    assert (w.champion, w.status.phase) == (2, "bake")
    assert "0 of 100 requests failed on it alone, 100 on the other" in w.last("promoted").reason


@pytest.mark.parametrize("phase", ["shadow", "canary", "bake"])
@pytest.mark.parametrize("deed", ["promote", "freeze", "block"])
def test_a_person_who_steps_in_ends_it(world: Build, phase: str, deed: str) -> None:
    w = world(policy="auto" if phase == "bake" else phase)
    version = w.train(noisy)
    assert w.status.phase == phase
    other = publish_version(w.registry)
    if deed == "promote":
        w.promoter.promote("m", other, actor="ann", reason="no, this one")
    elif deed == "freeze":
        w.directory.freeze(actor="ann", reason="holidays")
    else:
        w.directory.block(version, actor="ann", reason="smells")
    w.settle()
    ended = w.last("rollout_ended")
    assert ended.version == version
    words = {"promote": "changed by somebody else", "freeze": "holidays", "block": "smells"}[deed]
    assert words in ended.reason
    if deed == "promote":
        assert w.champion == other
        assert (w.status.phase, w.status.version) == ("bake", other), "what they promoted is baked"
    else:
        assert w.status.phase == "none" and w.promoter.held == []
        assert w.champion == (version if phase == "bake" else 1)
    if phase == "canary":
        assert w.promoter.splits[-1] == (None, 0.0)


def test_a_rollback_by_hand_ends_the_bake_and_begins_none(world: Build) -> None:
    w = world()
    w.train(noisy)
    w.promoter.rollback("m", actor="ann", reason="I liked the old one")
    w.settle()
    assert w.status.phase == "none" and w.since("rolled_back") == ["rolled_back", "rollout_ended"]


def test_a_frozen_model_is_neither_changed_nor_baked(world: Build) -> None:
    w = world()
    w.directory.freeze(actor="ann", reason="holidays")
    w.train(noisy)
    assert w.champion == 1 and "frozen: holidays" in w.last("held").reason
    w.promote(noisy)
    assert w.champion == 3 and w.status.phase == "none"


def test_a_newer_version_takes_the_place_of_one_that_is_compared_yet(world: Build) -> None:
    w = world(policy="shadow")
    w.train(noisy)
    w.train(noisy)
    assert (w.status.phase, w.status.version) == ("shadow", 3)
    ended = w.last("rollout_ended")
    assert ended.version == 2 and "version 3 came" in ended.reason


@pytest.mark.parametrize("phase", ["shadow", "canary", "bake"])
def test_a_phase_that_the_last_server_left_open_is_begun_anew(world: Build, phase: str) -> None:
    w = world(policy="auto" if phase == "bake" else phase)
    w.train(noisy)
    w.chunk(600)
    again = w.restart()
    try:
        assert (again.status.phase, again.status.version) == (phase, 2)
        assert again.status.rows_compared == 0
        assert "begun anew" in again.last("rollout_started").reason
        if phase == "canary":
            assert again.promoter.splits == [(2, 0.1)]
        else:
            for _ in range(5):
                again.chunk()
            assert again.champion == 2
    finally:
        again.loop.stop()


def test_a_phase_that_was_left_open_and_overtaken_is_closed(world: Build) -> None:
    w = world(policy="shadow")
    w.train(noisy)
    w.loop.stop()
    w.directory.freeze(actor="ann", reason="holidays")
    again = w.restart()
    try:
        assert again.status.phase == "none" and again.history[-1] == "rollout_ended"
        assert "cut short as the server ended" in again.last("rollout_ended").reason
    finally:
        again.loop.stop()


def test_what_was_promoted_while_no_server_ran_is_baked_as_one_starts(world: Build) -> None:
    w = world()
    w.loop.stop()
    version = publish_version(w.registry)
    w.directory.promote(version, actor="ann", reason="by hand")
    again = w.restart()
    try:
        assert (again.status.phase, again.status.version) == ("bake", version)
    finally:
        again.loop.stop()


def test_a_version_that_takes_other_inputs_is_not_compared(world: Build) -> None:
    other = Signature(inputs=(TensorSpec("x", "FP32", (-1, 3)),), outputs=())
    w = world()
    version = publish_version(w.registry)
    w.promoter.runners[version] = FakeRunner(signature=other)
    w.promoter.promote("m", version, actor="ann", reason="by hand")
    w.settle()
    assert w.status.phase == "none" and w.champion == version
    assert "they take other inputs; it is champion without a bake" in w.last("rollout_ended").reason


def test_a_version_that_cannot_be_loaded_waits_for_a_person(world: Build) -> None:
    w = world(policy="shadow")
    w.promoter.hold_error = PreconditionError("version 2 cannot be loaded: it is a brick")
    w.train(noisy)
    assert "it is a brick" in w.last("held").reason and w.status.phase == "none"


def test_without_bakes_a_promotion_is_the_end_of_it(world: Build) -> None:
    w = world(bake=False)
    w.train(constant)
    assert w.status.phase == "none" and w.since("promoted") == ["promoted"]


def test_rows_that_do_not_fit_are_dropped_and_shown(world: Build) -> None:
    w = world(mirror_rows=200, mirror_cpu=0.001)
    w.train(noisy)
    for _ in range(10):
        w.chunk(100, settle=False)
    mirror = w.model.observed.mirror
    stats = mirror.stats
    assert stats.offered == 1_000 == stats.compared + stats.dropped + stats.waiting
    w.settle()
    assert w.status.rows_dropped == mirror.stats.dropped
    assert w.status.rows_compared + w.status.rows_dropped == 1_000


def test_a_replay_that_settles_decides_the_same_each_time(tmp_path: Path) -> None:
    def told(path: Path) -> list[tuple[str, str]]:
        w = RolloutWorld(path, policy="shadow")
        try:
            w.train(noisy)
            for _ in range(5):
                w.chunk(300, labels=True)
            w.train(lambda temp: temp * 2 + 1)
            for _ in range(5):
                w.chunk(300, labels=True)
            return [(entry.kind, entry.reason) for entry in w.directory.history().entries]
        finally:
            w.loop.stop()

    first, second = told(tmp_path / "a"), told(tmp_path / "b")
    assert first == second
    assert [kind for kind, _ in first].count("rollout_verdict") == 2


def test_between_settlements_a_tick_judges_nothing(world: Build) -> None:
    w = world()
    w.train(noisy)
    for _ in range(5):
        w.chunk(settle=False)
    mirror = w.model.observed.mirror
    wait_until(lambda: not mirror.waiting, "all rows are compared")
    w.tick()
    assert w.status.phase == "bake", "somebody settles this model"
    w.model.rollout._settled_at -= 61
    w.tick()
    assert (w.status.phase, w.status.verdict) == ("none", "pass")
