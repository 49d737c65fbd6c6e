"""The file of what is still to be sent."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trimtab.registry import durable
from trimtab.server.webhook.message import Message
from trimtab.server.webhook.outbox import Mark, Outbox

MAX_BYTES = 1 << 20


def message(number: int, size: int = 10) -> Message:
    return Message(f"evt_{number}", "drift", number, b"x" * size)


@contextmanager
def opened(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[Outbox]:
    outbox = Outbox(path / "o", max_bytes)
    outbox.open()
    yield outbox
    outbox.close()


def ids(outbox: Outbox) -> list[str]:
    """Takes out all that is pending."""
    found = []
    while (first := outbox.first()) is not None:
        found.append(first.id)
        outbox.done(first)
    return found


def test_what_was_added_is_there_for_the_next_server_in_order(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o", MAX_BYTES)
    assert outbox.open() is None, "there was none"
    outbox.add([message(1), message(2), message(3)], {"m": Mark(7, "abc")})
    first = outbox.first()
    assert first == message(1)
    outbox.done(first)  # and nobody closes it: the server was killed
    again = Outbox(tmp_path / "o", MAX_BYTES)
    assert again.open() == {"m": Mark(7, "abc")}
    assert again.pending == 2 and again.first() == message(2)
    assert ids(again) == ["evt_2", "evt_3"]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_line_that_was_half_written_counts_for_nothing(tmp_path: Path, kept: int) -> None:
    with opened(tmp_path) as outbox:
        outbox.add([message(1)], {})
        whole = (tmp_path / "o").stat().st_size
        outbox.add([message(2)], {})
    os.truncate(tmp_path / "o", whole + kept)
    with opened(tmp_path) as again:
        again.add([message(3)], {})
    with opened(tmp_path) as last:
        assert (last.damaged, ids(last)) == (0, ["evt_1", "evt_3"])


def test_a_line_that_is_none_is_counted_and_passed_over(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.add([message(1)], {})
    lines = (tmp_path / "o").read_bytes()
    (tmp_path / "o").write_bytes(b'{"id": 1}\n\xff\n[]\n' + lines)
    with opened(tmp_path) as again:
        assert (again.damaged, ids(again)) == (3, ["evt_1"])


def test_a_message_is_taken_once_by_its_id(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.add([message(1), message(1)], {})
        assert ids(outbox) == ["evt_1"]
        outbox.add([message(1)], {})
        assert outbox.pending == 0, "it was delivered"


def test_beyond_its_room_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=10_000) as outbox:
        for number in range(30):
            outbox.add([message(number, 1000)], {})
        assert 0 < outbox.pending < 10 and outbox.overflowed == 30 - outbox.pending
    with opened(tmp_path, max_bytes=10_000) as again:
        assert ids(again)[-1] == "evt_29" and again.overflowed == 0


def test_a_file_of_what_is_done_is_replaced(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.add([], {"m": Mark(1, "a")})
        outbox.add([message(-1)], {})
        largest = 0
        for number in range(400):
            outbox.add([message(number, 2000)], {"m": Mark(number, "a")})
            ids(outbox)
            largest = max(largest, (tmp_path / "o").stat().st_size)
        assert largest < 300_000
    assert Outbox(tmp_path / "o", MAX_BYTES).open() == {"m": Mark(399, "a")}


def test_messages_are_on_the_disk_before_add_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        real(fd)

    with opened(tmp_path) as outbox:
        outbox.add([message(0)], {})  # which makes the file
        monkeypatch.setattr(os, "fsync", fsync)
        outbox.add([message(1)], {})
        assert synced == [(tmp_path / "o").stat().st_size]
        outbox.add([], {"m": Mark(1, "a")})
        outbox.done(message(1))
        assert len(synced) == 1, "what is lost of this is sent again"


def test_a_full_disk_keeps_messages_in_memory_until_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write_all

    def full(fd: int, data: bytes) -> None:
        real(fd, data[: len(data) // 2])  # as a disk does
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as outbox:
        outbox.add([message(1)], {})
        with monkeypatch.context() as patch:
            patch.setattr(durable, "write_all", full)
            outbox.add([message(2)], {"m": Mark(2, "b")})
            outbox.add([message(3)], {})
            assert outbox.pending == 3 and outbox.first() == message(1)
        outbox.add([message(4)], {})
        lines = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
        assert [each.get("id", "mark") for each in lines] == [
            *("mark", "evt_1", "evt_2", "evt_3", "evt_4"),
        ]
    assert [each.name for each in tmp_path.iterdir()] == ["o"], "nothing temporary is left"


def test_what_comes_after_the_end_is_not_written(tmp_path: Path) -> None:
    with opened(tmp_path) as outbox:
        outbox.add([message(1)], {})
    size = (tmp_path / "o").stat().st_size
    outbox.done(message(1))  # an attempt that came to its end too late
    assert (tmp_path / "o").stat().st_size == size
