"""Verify: one model after the other, each told as soon as it was looked at.

It reads every file of every version, so it takes seconds a gigabyte; two at once would only slow
down each other, and what serves.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from trimtab.proto import admin_pb2 as pb

from ...registry_check import check
from ..handlers import CallContext, Handler, StreamHandler
from .calls import Models, decode, refusals


class VerifyMethods:
    """Verify, on one event loop."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._alone = asyncio.Lock()

    def handlers(self) -> Mapping[str, Handler]:
        """By the method's own name."""
        return {"Verify": StreamHandler(self._verify)}

    async def _verify(self, request: bytes, _: CallContext) -> AsyncIterator[bytes]:
        asked = decode(pb.VerifyRequest, request)
        with refusals(self._models.path):
            for model in await asyncio.to_thread(self._names, asked.model_name):
                async with self._alone:
                    findings = await asyncio.to_thread(self._look, model)
                for finding in findings:
                    yield finding.SerializeToString()

    def _names(self, model: str) -> Sequence[str]:
        if not model:
            return self._models.registry.models()
        self._models.directory(model)
        return [model]

    def _look(self, model: str) -> list[pb.VerifyFinding]:
        return list(findings_of(self._models, model))


def findings_of(models: Models, model: str) -> Iterator[pb.VerifyFinding]:
    """What `trimtab verify` finds in one model."""
    found = check(models.path, model)
    for verdict, findings in (
        ("ok", found.whole),
        ("wrong", found.wrong),
        ("unreadable", found.unreadable),
        ("note", found.notes),
    ):
        for each in findings:
            yield pb.VerifyFinding(
                model_name=each.model, version=each.version, verdict=verdict, text=each.text
            )
