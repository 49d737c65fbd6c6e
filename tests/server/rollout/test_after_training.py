import pytest

from trimtab.registry.state import State
from trimtab.server.config import PromotionConfig
from trimtab.server.loop.training_run import TrainingResult
from trimtab.server.rollout.after_training import after_training

AUTO, MANUAL = PromotionConfig(policy="auto"), PromotionConfig(policy="manual")
START = State(revision=3, champion=1)
PUBLISHED = TrainingResult("published", "MAE 7.9 against 12.3", version=2)


@pytest.mark.parametrize(
    ("result", "policy", "now", "action"),
    [
        (PUBLISHED, AUTO, START, "roll out"),
        (PUBLISHED, MANUAL, START, "hold"),
        (PUBLISHED, AUTO, State(4, champion=5, previous=1), "hold"),
        (PUBLISHED, AUTO, State(5, champion=1, previous=5), "hold"),  # there and back is a change
        (PUBLISHED, AUTO, State(4, champion=2, previous=1), "none"),
        (TrainingResult("refused", "worse"), AUTO, START, "refuse"),
        (TrainingResult("failed", "crashed"), AUTO, START, "fail"),
        (TrainingResult("published"), AUTO, START, "fail"),
    ],
)
def test_what_becomes_of_a_result(
    result: TrainingResult, policy: PromotionConfig, now: State, action: str
) -> None:
    decision = after_training(result, policy, START, now)
    assert decision.action == action
    assert decision.reason
    if action == "roll out":
        assert (decision.version, decision.expected_revision) == (2, 3)


def test_a_held_version_says_who_stands_in_its_way() -> None:
    decision = after_training(PUBLISHED, AUTO, START, State(4, champion=5, previous=1))
    assert "revision 3 → 4, now version 5" in decision.reason
