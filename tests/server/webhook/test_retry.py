"""What follows from a reply."""

import pytest

from trimtab.server.webhook.retry import Reply, after

NOW_S = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("status", "attempts", "action"),
    [
        (200, 1, "delivered"),
        (204, 7, "delivered"),
        (410, 1, "stop"),
        (301, 1, "again"),
        (400, 4, "again"),
        (400, 5, "give up"),
        (422, 5, "give up"),
        (401, 50, "again"),
        (404, 50, "again"),
        (500, 50, "again"),
        (0, 50, "again"),
    ],
)
def test_a_reply_leads_to(status: int, attempts: int, action: str) -> None:
    assert after(Reply(status), attempts, NOW_S, 0.5).action == action


def test_waits_double_up_to_ten_minutes_and_are_shortened_by_up_to_half() -> None:
    waits = [after(Reply(500), attempts, NOW_S, 0.0).wait_s for attempts in range(1, 13)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    assert after(Reply(500), 4, NOW_S, 0.9999).wait_s == pytest.approx(4, abs=0.01)
    assert after(Reply(500), 10_000, NOW_S, 0.0).wait_s == 600


@pytest.mark.parametrize(
    ("status", "header", "wait_s"),
    [
        (429, "30", 30),
        (503, "30", 30),
        (500, "30", 1),
        (503, "0", 1),
        (503, "86400", 3600),
        (503, "9" * 400, 3600),
        (503, "Sun, 06 Nov 1994 08:50:37 GMT", 60),
        (503, "Sun, 06 Nov 1994 08:49:00 GMT", 1),
        (503, "soon", 1),
        (503, "-5", 1),
        (503, "", 1),
    ],
)
def test_retry_after_is_kept_to_within_an_hour(status: int, header: str, wait_s: float) -> None:
    assert after(Reply(status, header), 1, NOW_S, 0.0).wait_s == wait_s
