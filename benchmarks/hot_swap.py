"""What a change of champion costs while a server answers: `python benchmarks/hot_swap.py`.

A real server with its traffic log and drift monitor, a load generator that reads every answer, and
promotions and rollbacks through the admin port, each of which is written and synced to disk. Every
answer must be, to the byte, what the version that it names gives.

* swaps: 200 of them under full load, in turns with stretches of the same load without any.
* memory: resident bytes over 1,000 promotions of a 6 MB forest, each of which loads one version and
  drops another.
* shadow: the throughput of a server that runs another version on the same rows, beside that of one
  which does not.
* ageing: the time that a lone request takes after 10,000 swaps, beside that of a server which never
  swapped, since the machine is not the same after some minutes.

Where two servers are compared they take turns of half a second, many of them, each server first in every
other turn: a slow moment of the machine then spoils a pair and not the median of all. Beside wall time
there is the server's processor time per request, which neighbours disturb less.

docs/benchmarks.md says what each figure means and what it cannot tell.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hot_swap_models
import numpy as np
from checking_load import Answers, CheckedLoad, compiled, sending
from environment import describe
from load import Load, LoadError
from making import MADE, AbsentError
from processes import NotStartedError
from swap_server import Swap, SwapServer, serving

from trimtab.server.commands.admin_client import AdminError

FULL, LONE = Load(8, 32), Load(1, 1)
_MANY_ROWS = 200_000  # that a bake compares: more than it comes to


@dataclass(frozen=True)
class Size:
    """How much of everything is done."""

    swaps: int = 200
    rounds: int = 10  # stretches with swaps, and as many without
    stretch_s: float = 2.0
    loads: int = 1000  # promotions that load a version
    settled: int = 50  # of these, after which memory is to stay
    ageing: int = 10_000
    turns: int = 30  # of each of two servers that are compared
    turn_s: float = 0.5


QUICK = Size(20, 2, 1.0, 30, 10, 200, 4, 0.4)


@dataclass(frozen=True)
class Turn:
    """A stretch of load on one server."""

    p50_us: float
    per_s: float
    cpu_us: float  # of the server's processes, per request


@dataclass(frozen=True)
class Pair:
    """Two servers' turns, one right after the other."""

    one: Turn
    other: Turn

    def ratio(self, what: str) -> float:
        return float(getattr(self.one, what) / getattr(self.other, what))


def _ratios(pairs: list[Pair], what: str) -> dict[str, float]:
    """The median of the pairs' ratios, with the interval that holds it in 19 of 20 runs as far as
    pairs are independent: between order statistics, whatever their distribution."""
    ratios = np.sort([pair.ratio(what) for pair in pairs])
    within = int(max(0, np.floor(len(ratios) / 2 - 0.98 * np.sqrt(len(ratios)))))
    return {
        "median": float(np.median(ratios)),
        "low": float(ratios[within]),
        "high": float(ratios[-1 - within]),
    }


def swaps_under_load(folder: Path, size: Size) -> dict[str, Any]:
    with serving(folder, hot_swap_models.linear, 2) as server:
        server.promote(2)
        replies = server.replies(2)
        server.swap()
        request = hot_swap_models.request(server.model)
        quiet: list[tuple[float, float]] = []
        swapped: list[tuple[float, float]] = []
        swaps: list[Swap] = []
        with sending(server.address, request, replies, FULL, folder / "load") as load:
            time.sleep(1.0)
            for turn in range(size.rounds):
                for with_swaps in (turn % 2 == 0, turn % 2 == 1):
                    began = time.monotonic()
                    if with_swaps:
                        swaps += _paced(server, size.swaps // size.rounds, size.stretch_s)
                    else:
                        time.sleep(size.stretch_s)
                    (swapped if with_swaps else quiet).append((began, time.monotonic()))
            answers = load.stop()
    return {
        "swaps": len(swaps),
        "failed_requests": load.failed,
        "wrong_replies": load.unexpected,
        **({"complaint": load.complaint} if load.failed else {}),
        "requests": len(answers.reply),
        **_stretches(answers, quiet, swapped),
        "rollback_ms": _spread([_until_gone(answers, swaps, at) for at in _those(swaps, 1)]),
        "promote_ms": _spread([_until_gone(answers, swaps, at) for at in _those(swaps, 2)]),
        "rollback_call_ms": _spread(
            [(swaps[at].returned_s - swaps[at].called_s) * 1e3 for at in _those(swaps, 1)]
        ),
    }


def _paced(server: SwapServer, swaps: int, seconds: float) -> list[Swap]:
    """Evenly over the time; a swap that takes longer delays the next."""
    began = time.monotonic()
    made = []
    for index in range(swaps):
        time.sleep(max(0.0, began + index * seconds / swaps - time.monotonic()))
        made.append(server.swap())
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return made


def _those(swaps: list[Swap], to: int) -> list[int]:
    return [index for index, swap in enumerate(swaps) if swap.to == to]


def _until_gone(answers: Answers, swaps: list[Swap], index: int) -> float:
    """Milliseconds from the call until the last answer of the version that it takes back."""
    swap = swaps[index]
    ends = swaps[index + 1].called_s if index + 1 < len(swaps) else np.inf
    after = answers.between(swap.called_s, ends)
    old = after.at_s[after.reply == (2 - swap.to)]  # of version 1 the index is 0
    return float((old[-1] - swap.called_s) * 1e3) if len(old) else 0.0


def _stretches(
    answers: Answers, quiet: list[tuple[float, float]], swapped: list[tuple[float, float]]
) -> dict[str, Any]:
    def p99(stretch: tuple[float, float]) -> float:
        return float(np.percentile(answers.between(*stretch).took_us, 99))

    def per_s(stretch: tuple[float, float]) -> float:
        return len(answers.between(*stretch).at_s) / (stretch[1] - stretch[0])

    pairs = list(zip(swapped, quiet, strict=True))
    ratios = [p99(one) / p99(other) for one, other in pairs]
    return {
        "p99_ratio": float(np.median(ratios)),
        "p99_ratios": ratios,
        "p99_us": {
            "with_swaps": float(np.median([p99(each) for each in swapped])),
            "without": float(np.median([p99(each) for each in quiet])),
        },
        "throughput_ratio": float(np.median([per_s(one) / per_s(other) for one, other in pairs])),
        "requests_per_s": float(np.median([per_s(each) for each in quiet])),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "p99": float(np.percentile(values, 99)),
        "max": float(np.max(values)),
    }


def memory(folder: Path, size: Size) -> dict[str, Any]:
    with serving(folder, hot_swap_models.forest, 3) as server:
        replies = []
        for version in (1, 2, 3):
            server.promote(version)
            replies.append(server.reply(version))
        samples = []
        request = hot_swap_models.request(server.model)
        with sending(server.address, request, replies, LONE, folder / "load") as load:
            for index in range(1, size.loads + 1):
                server.promote(index % 3 + 1)
                if index % 10 == 0:
                    server.wait_until_retired()
                    samples.append(server.process.resident_bytes() / 1e6)
            load.stop()
        file_mb = (folder / "models/forest/1/model.onnx").stat().st_size / 1e6
    settled = samples[max(size.settled // 10 - 1, 0) :]
    few = max(1, min(5, len(settled) // 3))
    return {
        "rss_growth_mb": float(np.median(settled[-few:]) - np.median(settled[:few])),
        "loads": size.loads,
        "model_mb": file_mb,
        **_failures(load),
        "rss_mb": samples,
    }


def ageing(folder: Path, size: Size) -> dict[str, Any]:
    """The lone request's time on a server that swaps over that on one that does not, and how the
    swaps change this ratio."""
    with (
        serving(folder / "old", hot_swap_models.linear, 2) as old,
        serving(folder / "young", hot_swap_models.linear, 2) as young,
    ):
        for server in (old, young):
            server.promote(2)
            server.swap()
        loads: list[CheckedLoad] = []

        def turns(count: int) -> list[Pair]:
            return [
                _pair(old, young, LONE, folder, size, loads, other_first=bool(turn % 2))
                for turn in range(count)
            ]

        turns(max(1, size.turns // 5))  # to warm up
        before = turns(size.turns)
        began = time.monotonic()
        request, replies = hot_swap_models.request(old.model), old.replies(2)
        with sending(old.address, request, replies, LONE, folder / "during") as load:
            for _ in range(size.ageing):
                old.swap()
            load.stop()
        took = time.monotonic() - began
        after = turns(size.turns)

    def aged(what: str) -> float:
        return _ratios(after, what)["median"] / _ratios(before, what)["median"]

    return {
        "latency_ratio_after_10000_swaps": aged("p50_us"),
        "cpu_ratio_after_10000_swaps": aged("cpu_us"),
        "swaps": size.ageing,
        "swap_ms": took / size.ageing * 1e3,
        **{
            f"{name}_ratio_{when}": _ratios(pairs, what)
            for when, pairs in (("before", before), ("after", after))
            for name, what in (("latency", "p50_us"), ("cpu", "cpu_us"))
        },
        **_failures(*loads, load),
    }


def _pair(
    one: SwapServer,
    other: SwapServer,
    load: Load,
    folder: Path,
    size: Size,
    loads: list[CheckedLoad],
    *,
    other_first: bool,
) -> Pair:
    turns = {
        server: _turn(server, load, folder / "turn", size.turn_s, loads)
        for server in ((other, one) if other_first else (one, other))
    }
    return Pair(turns[one], turns[other])


def _turn(
    server: SwapServer, load: Load, folder: Path, seconds: float, loads: list[CheckedLoad]
) -> Turn:
    """Requests of a stretch of load, without its first and last moments."""
    request, replies = hot_swap_models.request(server.model), server.replies(2)
    with sending(server.address, request, replies, load, folder) as under_way:
        time.sleep(0.1)
        cpu_s, began = server.process.cpu_s(), time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        cpu_s = server.process.cpu_s() - cpu_s
        answers = under_way.stop().between(began, ended)
    loads.append(under_way)
    count = len(answers.at_s)
    if not count:
        raise LoadError(f"no answer within {seconds:g} s")
    return Turn(float(np.median(answers.took_us)), count / (ended - began), cpu_s * 1e6 / count)


def _failures(*loads: CheckedLoad) -> dict[str, Any]:
    complaints = [load.complaint for load in loads if load.failed]
    return {
        "failed_requests": sum(load.failed for load in loads),
        "wrong_replies": sum(load.unexpected for load in loads),
        **({"complaints": complaints[:3]} if complaints else {}),
    }


def shadow(folder: Path, size: Size) -> dict[str, Any]:
    """A bake is a shadow that a promotion begins: the version before runs on the same rows."""
    # The two differ, and no verdict is to end it.
    settings = (f"bake_rows={_MANY_ROWS}", "max_psi=0", "max_latency_ms=1000")
    on = [part for each in settings for part in ("--set", f"promotion.{each}")]
    off = ("--set", "promotion.bake=false")
    with (
        serving(folder / "on", hot_swap_models.linear, 2, *on) as shadowing,
        serving(folder / "off", hot_swap_models.linear, 2, *off) as alone,
    ):
        loads: list[CheckedLoad] = []
        pairs, compared, dropped = [], [], []
        for turn in range(-1, size.turns):
            for server in (shadowing, alone):
                if server.champion == 2:
                    server.swap()
                server.swap()
            shadowing.wait_for_bake()
            pair = _pair(shadowing, alone, FULL, folder, size, loads, other_first=bool(turn % 2))
            status = shadowing.admin.rollout(shadowing.model)
            if status.phase != "bake" or not status.rows_compared:
                raise LoadError(f"the bake was not under way all the time: {status}")
            if turn < 0:
                continue  # the first of each is to warm up
            pairs.append(pair)
            compared.append(int(status.rows_compared))
            dropped.append(int(status.rows_dropped))
    throughput = _ratios(pairs, "per_s")
    return {
        "shadow_throughput_ratio": throughput["median"],
        "throughput_ratio": throughput,
        "cpu_ratio": _ratios(pairs, "cpu_us"),
        "requests_per_s": float(np.median([pair.other.per_s for pair in pairs])),
        "rows_compared": compared,
        "rows_dropped": dropped,
        **_failures(*loads),
    }


PARTS: dict[str, Callable[[Path, Size], dict[str, Any]]] = {
    "swaps": swaps_under_load,
    "memory": memory,
    "shadow": shadow,
    "ageing": ageing,
}
# What the figures are called in the result, and the most or the least that they are to be.
FIGURES: dict[str, tuple[str, float]] = {
    "failed_requests": ("at most", 0),
    "wrong_replies": ("at most", 0),
    "p99_ratio": ("at most", 1.3),
    "rollback_ms.median": ("at most", 20),
    "rollback_ms.p99": ("at most", 150),
    "rss_growth_mb": ("at most", 20),
    "shadow_throughput_ratio": ("at least", 0.9),
    "latency_ratio_after_10000_swaps": ("at most", 1.05),
}


def summary(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that are promised, from those of the parts; null: its part was left out."""
    found: dict[str, Any] = {
        "swaps": sum(parts[name]["swaps"] for name in ("swaps", "ageing") if name in parts),
        "failed_requests": sum(part["failed_requests"] for part in parts.values()),
        "wrong_replies": sum(part["wrong_replies"] for part in parts.values()),
    }
    for part, names in (
        ("swaps", ("p99_ratio", "rollback_ms")),
        ("memory", ("rss_growth_mb",)),
        ("shadow", ("shadow_throughput_ratio",)),
        ("ageing", ("latency_ratio_after_10000_swaps",)),
    ):
        for name in names:
            found[name] = parts[part][name] if part in parts else None
    return found


def main() -> None:
    options = _options()
    # A shell lets what it starts in the background ignore the interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    size = QUICK if options.quick else Size()
    environment = {
        **describe(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
    }
    MADE.mkdir(parents=True, exist_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    try:
        compiled()
        with tempfile.TemporaryDirectory(prefix=f"swap-{os.getpid()}-", dir=MADE) as folder:
            for name in options.parts:
                print(f"{name} ...", file=sys.stderr, flush=True)
                began = os.getloadavg()[0]
                parts[name] = PARTS[name](Path(folder) / name, size)
                parts[name]["load_average"] = [round(began, 2), round(os.getloadavg()[0], 2)]
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (AbsentError, NotStartedError, LoadError, AdminError) as error:
        print(f"failed: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    result = {**summary(parts), "environment": environment, "parts": parts}
    _show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if result["failed_requests"] or result["wrong_replies"]:
        raise SystemExit(1)


def _show(result: dict[str, Any]) -> None:
    for name, (which, limit) in FIGURES.items():
        value = result
        for step in name.split("."):
            value = value[step] if value is not None else None
        told = "left out" if value is None else f"{value:.4g}"
        print(f"{name:34} {told:>10}   {which} {limit:g}")


def _options() -> argparse.Namespace:
    def parts(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in PARTS:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PARTS)}")
        return chosen

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, or less")
    parser.add_argument("--parts", type=parts, default=list(PARTS), help="a,b: these only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
