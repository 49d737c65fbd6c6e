"""A process that publishes, promotes, rolls back and records, at random and without end.

    python writer_process.py MODEL_DIR SEED COUNT

One line of JSON on stdout for each operation that was acknowledged to it.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import NoPreviousError, RevisionConflictError
from trimtab.registry.manifest import Signature

WHO: dict[str, Any] = {"actor": "writer", "reason": "test"}


def publish(model: ModelDirectory, dice: random.Random) -> dict[str, Any]:
    with model.stage() as staged:
        (staged.path / "model.onnx").write_bytes(dice.randbytes(dice.randrange(20_000)))
        version = staged.publish(
            signature=Signature((), ()), task="regression", lineage={}, metrics={}, **WHO
        )
    return {"version": version}


def promote(model: ModelDirectory, dice: random.Random) -> dict[str, Any]:
    """Compare-and-swap: what was expected must have been so."""
    expected = model.state().revision
    version = dice.choice(model.versions())
    try:
        state = model.promote(version, expected_revision=expected, **WHO)
    except RevisionConflictError:
        return {}
    return {"revision": state.revision, "expected": expected}


def rollback(model: ModelDirectory, dice: random.Random) -> dict[str, Any]:
    try:
        return {"revision": model.rollback(**WHO).revision}
    except NoPreviousError:
        return {}


def record(model: ModelDirectory, dice: random.Random) -> dict[str, Any]:
    entry = model.record("drift", evidence={"noise": "x" * dice.randrange(5_000)}, **WHO)
    return {"hash": entry.hash}


def main(path: Path, seed: int, count: int) -> None:
    model = ModelDirectory(path)
    dice = random.Random(seed)
    operations = [publish, promote, promote, rollback, record]
    publish(model, dice)
    for _ in range(count):
        print(json.dumps(dice.choice(operations)(model, dice)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
