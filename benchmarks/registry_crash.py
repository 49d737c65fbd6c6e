"""What a registry survives: `python benchmarks/registry_crash.py`.

First a process changes a model directory without end (publishes, promotes, rolls back, blocks,
records, removes) and is killed with SIGKILL at a random moment, again and again on the same
directory. After every kill the directory is looked at as a reader would find it, then recovered as
a server would at its start, and looked at again. A process prints the token of a change when the
change was acknowledged to it; the token is the change's reason, so the history must have it.

Then several processes publish and promote at once, with compare-and-swap.

What is counted: corrupt registries (a state, chain or version that does not hold), acknowledged
changes that are lost, half versions that a reader could see. The exit code is 1 if there are any.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import NoPreviousError, RegistryError, RevisionConflictError
from trimtab.registry.history import CHAMPION_CHANGES, HistoryEntry
from trimtab.registry.manifest import Signature
from trimtab.registry.state import replay

KEEP = 4  # versions that a removal leaves, besides those that are held
TIMEOUT_S = 600

# The writing process


class Writer:
    """Changes of one model, each with a reason of its own that is told once it is made."""

    def __init__(self, path: Path, seed: str, *, aloud: bool) -> None:
        self.model = ModelDirectory(path)
        self._seed = seed
        self._aloud = aloud  # also tells what is begun
        self._dice = random.Random(seed)
        self._made = 0

    def run(self, names: list[str], weights: list[int], count: int) -> None:
        for _ in range(count):
            (name,) = self._dice.choices(names, weights)
            if not self.model.versions():
                name = "publish"
            if self._aloud:
                print(json.dumps({"began": name}), flush=True)
            self._made += 1
            token = f"{self._seed}-{self._made}"
            done = getattr(self, f"_{name}")({"actor": "writer", "reason": token})
            print(json.dumps({"did": name} | ({"token": token} if done else {})), flush=True)

    def _publish(self, who: dict[str, Any]) -> bool:
        with self.model.stage() as staged:
            for name in ("model.onnx", "golden.npz"):
                data = self._dice.randbytes(self._dice.randrange(20_000))
                (staged.path / name).write_bytes(data)
            staged.publish(
                signature=Signature((), ()), task="regression", lineage={}, metrics={}, **who
            )
        return True

    def _promote(self, who: dict[str, Any]) -> bool:
        state = self.model.state()
        others = [version for version in self.model.versions() if version != state.champion]
        if not others:
            return False
        try:
            version = self._dice.choice(others)
            self.model.promote(version, expected_revision=state.revision, **who)
        except RevisionConflictError:
            return False
        return True

    def _rollback(self, who: dict[str, Any]) -> bool:
        try:
            window = self.model.state().champions
            to = self._dice.choice([None, *window])
            self.model.rollback(to=to, **who)
        except NoPreviousError:
            return False
        return True

    def _block(self, who: dict[str, Any]) -> bool:
        champion = self.model.state().champion
        others = [version for version in self.model.versions() if version != champion]
        if others:
            self.model.block(self._dice.choice(others), **who)
        return bool(others)

    def _remove(self, who: dict[str, Any]) -> bool:
        return bool(self.model.retain(KEEP, **who))

    def _record(self, who: dict[str, Any]) -> bool:
        self.model.record("drift", evidence={"x": "x" * self._dice.randrange(5000)}, **who)
        return True


ALL = {"publish": 5, "promote": 4, "rollback": 3, "remove": 3, "block": 1, "record": 1}
TOGETHER = {"publish": 1, "promote": 2}


def start(
    path: Path, seed: str, operations: dict[str, int], count: int, *, aloud: bool
) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--child", str(path), seed, json.dumps(operations)]
    return subprocess.Popen(
        [*command, str(count), str(int(aloud))], stdout=subprocess.PIPE, text=True
    )


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What was said in whole lines."""
    return [json.loads(line) for line in lines if line.endswith("\n")]


# What must hold


@dataclass
class Findings:
    """What was wrong, in words, by kind; and what happened, in numbers."""

    corrupt: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        return len(self.corrupt) + len(self.lost) + len(self.half)

    def to_dict(self) -> dict[str, Any]:
        return {
            "corrupt_registries": len(self.corrupt),
            "lost_changes": len(self.lost),
            "half_versions": len(self.half),
            "problems": [*self.corrupt, *self.lost, *self.half][:20],
        }


def inspect(model: ModelDirectory, tokens: set[str], found: Findings) -> list[HistoryEntry]:
    """Looks as a reader does, at any time; returns the history."""
    try:
        history, state = model.history(), model.state()
    except RegistryError as error:
        found.corrupt.append(str(error))
        return []
    if not history.valid:
        found.corrupt.append(history.error)
    if (replayed := replay(history.entries).state) != state:
        found.corrupt.append(f"{state} is not where the history leads: {replayed}")
    reasons = {entry.reason for entry in history.entries}
    found.lost += [f"{token} is not in the history" for token in tokens - reasons]
    for version in model.versions():
        try:
            model.verify(version)
        except RegistryError as error:
            found.half.append(str(error))
    if state.champion not in (None, *model.versions()):
        found.half.append(f"champion {state.champion} is not there")
    return list(history.entries)


def inspect_recovered(model: ModelDirectory, tokens: set[str], found: Findings) -> None:
    """Looks when nobody is at work and all is mended."""
    entries = inspect(model, tokens, found)
    if again := model.recover():
        found.corrupt.append(f"recovered twice: {again}")
    of = {
        kind: [entry.version for entry in entries if entry.kind == kind]
        for kind in ("published", "removed")
    }
    if of["published"] != list(range(1, len(of["published"]) + 1)):
        found.corrupt.append(f"versions are not dense and unique: {of['published']}")
    there = sorted(set(of["published"]) - set(of["removed"]))
    if not there == model.versions() == model.version_directories():
        found.half.append(f"{model.version_directories()} are there, and should be {there}")
    found.half += [f"{path.name} is left" for path in model.path.glob(".tmp-*")]


# The two trials


def kill_again_and_again(
    model: ModelDirectory, kills: int, seed: int, progress: Callable[[str], None]
) -> tuple[Findings, dict[str, Any]]:
    dice = random.Random(seed)
    found = Findings()
    tokens: set[str] = set()
    during: Counter[str] = Counter()
    mended = 0
    recovery_ms = []
    for number in range(kills):
        with start(model.path, f"k{seed}.{number}", ALL, 1_000_000, aloud=True) as process:
            assert process.stdout is not None
            try:
                lines = [process.stdout.readline() for _ in range(dice.randrange(1, 14))]
                time.sleep(dice.uniform(0, 0.012))  # the moment of death
            finally:
                process.kill()
            said = parse([*lines, *process.stdout.readlines()])
        if process.returncode != -signal.SIGKILL:
            found.corrupt.append(f"a writer ended by itself with {process.returncode}")
        tokens |= {reply["token"] for reply in said if "token" in reply}
        during[said[-1].get("began", "between two") if said else "its start"] += 1
        inspect(model, tokens, found)
        began = time.perf_counter()
        mended += bool(model.recover())
        recovery_ms.append((time.perf_counter() - began) * 1e3)
        inspect_recovered(model, tokens, found)
        if (number + 1) % 10 == 0 or number + 1 == kills:
            progress(f"{number + 1} of {kills} kills, {len(tokens)} changes, wrong: {found.wrong}")
        if found.wrong:
            break
    return found, {
        "kills": sum(during.values()),
        "acknowledged_changes": len(tokens),
        "killed_during": dict(during.most_common()),
        "had_to_be_mended": mended,
        "recovery_ms": {
            "median": round(statistics.median(recovery_ms), 1),
            "max": round(max(recovery_ms), 1),
        },
    }


def all_at_once(
    model: ModelDirectory, processes: int, operations: int, seed: int
) -> tuple[Findings, dict[str, Any]]:
    found = Findings()
    began = time.perf_counter()
    shares = [len(range(index, operations, processes)) for index in range(processes)]
    children = [
        start(model.path, f"c{seed}.{index}", TOGETHER, share, aloud=False)
        for index, share in enumerate(shares)
    ]
    said = []
    for child in children:
        said += parse(child.communicate(timeout=TIMEOUT_S)[0].splitlines(keepends=True))
        if child.returncode:
            found.corrupt.append(f"a writer ended with {child.returncode}")
    took_s = time.perf_counter() - began
    if len(said) != operations:
        found.lost.append(f"{len(said)} of {operations} operations ended")
    tokens = {reply["token"] for reply in said if "token" in reply}
    inspect_recovered(model, tokens, found)
    entries = model.history().entries
    changes = sum(entry.kind in CHAMPION_CHANGES for entry in entries)
    if changes != model.state().revision:
        found.corrupt.append(f"revision {model.state().revision} after {changes} changes")
    published = sum(entry.kind == "published" for entry in entries)
    acknowledged = sum(reply["did"] == "publish" for reply in said)
    if published != acknowledged:
        found.corrupt.append(f"{published} versions, {acknowledged} were acknowledged")
    return found, {
        "processes": processes,
        "operations": len(said),
        "versions": published,
        "revision": model.state().revision,
        "lost_compare_and_swaps": sum("token" not in reply for reply in said),
        "chain_valid": model.history().valid,
        "operations_per_s": round(len(said) / took_s, 1),
    }


def run(
    folder: Path,
    *,
    kills: int,
    processes: int,
    operations: int,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Both trials in a folder that is empty. The findings under `kill` and `together`."""
    killed, kill_figures = kill_again_and_again(
        ModelDirectory(folder / "killed"), kills, seed, progress
    )
    together, together_figures = all_at_once(
        ModelDirectory(folder / "together"), processes, operations, seed
    )
    progress(f"{processes} processes at once, wrong: {together.wrong}")
    return {
        "seed": seed,
        "sound": not killed.wrong + together.wrong,
        "kill": kill_figures | killed.to_dict(),
        "together": together_figures | together.to_dict(),
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        path, seed, operations, count, aloud = sys.argv[2:]
        weights: dict[str, int] = json.loads(operations)
        writer = Writer(Path(path), seed, aloud=aloud == "1")
        writer.run(list(weights), list(weights.values()), int(count))
        return
    from environment import describe  # the writing process does without

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="processes killed (300)")
    parser.add_argument("--processes", type=int, default=8, help="writers at once (8)")
    parser.add_argument("--operations", type=int, default=500, help="of them together (500)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--folder", type=Path, help="on which disk (the one of temporary files)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {"environment": describe()} | run(
            Path(folder),
            kills=options.kills,
            processes=options.processes,
            operations=options.operations,
            seed=options.seed,
            progress=lambda text: print(text, file=sys.stderr, flush=True),
        )
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if result["sound"] else 1)


if __name__ == "__main__":
    main()
