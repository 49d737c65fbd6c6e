"""An event as it is sent: its id, which never changes, and its body.

The id of what is in a history is made of the entry's hash: found again after a crash it is the same
one, and a receiver that has had it knows. The id of anything else is made of the server's run and the
event's number in it.
"""

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..events import Event

TEST = "webhook_test"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, and when it happened by the wall clock."""

    id: str
    kind: str
    time_ms: int
    body: bytes

    @classmethod
    def of(cls, event: Event, run: str) -> "Message":
        """`run`: of the server that numbered the event."""
        entry = event.entry
        name = entry.hash[:32] if entry is not None else f"{run}_{event.sequence}"
        return cls(f"evt_{name}", event.kind, event.time_ms, _body(event))

    @classmethod
    def test(cls, now_ms: int) -> "Message":
        """One that tells of nothing."""
        event = Event(0, now_ms, now_ms, "", TEST, actor="trimtab", reason="sent to see it arrive")
        return cls(f"evt_test_{secrets.token_hex(8)}", TEST, now_ms, _body(event))


def _body(event: Event) -> bytes:
    moment = datetime.fromtimestamp(event.time_ms / 1000, UTC)
    content = {
        "type": event.kind,
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data(event),
    }
    return json.dumps(content, separators=(",", ":")).encode()


def data(event: Event) -> dict[str, Any]:
    """The event by the names that it has in admin.proto, and so in `trimtab events --json`."""
    return {
        "sequence": event.sequence,
        "time_ms": event.time_ms,
        "event_time_ms": event.event_time_ms,
        "model_name": event.model,
        "kind": event.kind,
        "version": event.version,
        "actor": event.actor,
        "reason": event.reason,
        "evidence_json": event.evidence_json(),
        "history_sequence": event.entry.sequence if event.entry else 0,
    }
