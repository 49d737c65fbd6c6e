"""What a training costs the requests that are answered meanwhile: `python benchmarks/train_while_serving.py`.

A real server with its traffic log and drift monitor, a model with a log of labelled rows, and
trainings that an operator asks for, one after another; each of them learns, passes its gates and
publishes a version. Stretches of load while a training runs take turns with stretches of the same
load without any process of the trainer's side.

* steady: requests at a fixed rate, a share of what the server answers at most, whatever becomes of
  the ones before; a request's time counts from when it was due. Trainings run under it from their
  beginning to their end. Where the log is rolled into Parquet afterwards, that is a stretch as well.
* saturated: as many requests as are answered, a few hundred under way all the time. A training gets
  next to nothing of the processors then, so it runs alone but for one stretch, which is at another
  part of it each time.

Both loads compare every reply, byte for byte. docs/benchmarks.md says what each figure means and
what it cannot tell.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import checking_load
import numpy as np
import paced_load
import trained_server
from checking_load import sending
from environment import describe
from load import Load, LoadError
from making import MADE, AbsentError
from numpy.typing import NDArray
from paced_load import Pace, pacing
from processes import NotStartedError
from trained_server import History, TrainedServer, Training, request

from trimtab.server.commands.admin_client import AdminError

FULL = Load(8, 32)
_SHORTEST_S = 0.5  # of a stretch that is worth a figure
_TRIES = 5  # at a stretch into which no rolling of the log comes
_LONGEST_S = 300.0  # of a training: many times what it takes on a machine that nobody else uses


@dataclass(frozen=True)
class Size:
    """How much of everything is done."""

    history: History = field(default_factory=History)
    rounds: int = 4  # of each load: trainings, and as many stretches without
    quiet_s: float = 5.0
    saturated_s: float = 5.0
    settle_s: float = 1.0  # of load before the first stretch
    share: float = 0.5  # of the most, that the steady load is


QUICK = Size(History(60_000, 10_000), 2, 2.0, 2.0)


@dataclass(frozen=True)
class Stretch:
    """How requests fared between two moments."""

    seconds: float
    p50_us: float
    p99_us: float
    per_s: float  # answers
    late_p99_us: float = 0.0  # the load generator's own delay, of a steady load
    trainer_share: float = 0.0  # of one processor that the trainer had


def stretch_of(
    began_s: float, ended_s: float, took_us: NDArray[np.int32], answers: int, **further: float
) -> Stretch:
    """`took_us` of the requests that count, and how many answers came. LoadError without any."""
    if not len(took_us):
        raise LoadError(f"no request in a stretch of {ended_s - began_s:.1f} s")
    p50, p99 = np.percentile(took_us, [50, 99])
    seconds = ended_s - began_s
    return Stretch(seconds, float(p50), float(p99), answers / seconds, **further)


def compared(training: Sequence[Stretch], quiet: Sequence[Stretch]) -> dict[str, Any]:
    """Medians of the rounds' ratios, of the stretches with a training to those without."""
    pairs = list(zip(training, quiet, strict=True))
    ratios = {
        name: [getattr(one, name) / getattr(other, name) for one, other in pairs]
        for name in ("p99_us", "p50_us", "per_s")
    }
    return {
        "p99_ratio": float(np.median(ratios["p99_us"])),
        "p50_ratio": float(np.median(ratios["p50_us"])),
        "throughput_ratio": float(np.median(ratios["per_s"])),
        "p99_ratios": ratios["p99_us"],
        "p50_ratios": ratios["p50_us"],
        "throughput_ratios": ratios["per_s"],
        "p99_us": _medians(training, quiet, "p99_us"),
        "p50_us": _medians(training, quiet, "p50_us"),
        "requests_per_s": _medians(training, quiet, "per_s"),
        "trainer_share": float(np.median([each.trainer_share for each in training])),
        "rounds": [{"training": asdict(one), "without": asdict(other)} for one, other in pairs],
    }


def _medians(training: Sequence[Stretch], quiet: Sequence[Stretch], name: str) -> dict[str, float]:
    return {
        "training": float(np.median([getattr(each, name) for each in training])),
        "without": float(np.median([getattr(each, name) for each in quiet])),
    }


def trained_alone_s(server: TrainedServer) -> float:
    """How long a training takes that nothing disturbs, not even requests."""
    with server.training() as training:
        training.wait(_LONGEST_S)
    server.wait_until_alone()
    return training.ended_s - training.began_s


def most_per_s(server: TrainedServer, reply: bytes, folder: Path, seconds: float) -> float:
    """Requests a second that are answered where a new one comes with every answer."""
    with sending(server.address, request(), [reply], FULL, folder) as load:
        time.sleep(seconds / 2)
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        answers = load.stop()
    _require_answers(load)
    return len(answers.between(began, ended).at_s) / (ended - began)


def steady(
    server: TrainedServer, reply: bytes, folder: Path, size: Size, per_s: float
) -> dict[str, Any]:
    quiet: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    rolled: list[tuple[float, float]] = []
    shares: list[float] = []
    pace = Pace(FULL.connections, per_s)
    with pacing(server.address, request(), [reply], pace, folder) as load:
        time.sleep(size.settle_s)
        for turn in range(size.rounds):
            for with_training in (turn % 2 == 0, turn % 2 == 1):
                if not with_training:
                    quiet.append(_alone(server, size.quiet_s))
                    continue
                with server.training() as training:
                    shares.append(_followed(training))
                busy.append((training.began_s, training.ended_s))
                if server.wait_until_alone() > _SHORTEST_S:
                    rolled.append((training.ended_s, time.monotonic()))
        arrivals = load.stop()
    _require_answers(load)
    answered = np.sort(arrivals.due_s + arrivals.took_us / 1e6)

    def measured(between: tuple[float, float], share: float = 0.0) -> Stretch:
        found = arrivals.between(*between)
        count = int(np.diff(np.searchsorted(answered, between))[0])
        late = float(np.percentile(found.late_us, 99)) if len(found.late_us) else 0.0
        return stretch_of(*between, found.took_us, count, late_p99_us=late, trainer_share=share)

    without = [measured(each) for each in quiet]
    usual_p99_us = float(np.median([each.p99_us for each in without]))
    return {
        "offered_per_s": per_s,
        "training_s": float(np.median([ended - began for began, ended in busy])),
        "trainings": len(busy),
        "requests": len(arrivals.due_s),
        **compared(
            [measured(each, share) for each, share in zip(busy, shares, strict=True)], without
        ),
        "rolling_p99_ratios": [measured(each).p99_us / usual_p99_us for each in rolled],
    }


def _alone(server: TrainedServer, seconds: float) -> tuple[float, float]:
    """A stretch without any process of the trainer's side."""
    for _ in range(_TRIES):
        server.wait_until_alone()
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        if not server.children():
            return began, ended
    raise LoadError(f"the server started something in each of {_TRIES} stretches without training")


def _followed(training: Training) -> float:
    """The share of a processor that it had until its end."""
    cpu_s, at_s = 0.0, training.began_s
    while not training.wait(0.2):
        if found := training.cpu_s():
            cpu_s, at_s = found, time.monotonic()
        if at_s - training.began_s > _LONGEST_S:
            raise LoadError(f"a training did not end within {_LONGEST_S:g} s")
    return cpu_s / max(at_s - training.began_s, 1e-9)


def saturated(
    server: TrainedServer, reply: bytes, folder: Path, size: Size, alone_s: float
) -> dict[str, Any]:
    quiet: list[Stretch] = []
    busy: list[Stretch] = []
    for turn in range(size.rounds):
        for with_training in (turn % 2 == 0, turn % 2 == 1):
            if with_training:
                with server.training() as training:
                    # Within the first half: the longest one alone may be twice as long as another.
                    training.wait(alone_s * turn / (2 * size.rounds))
                    busy.append(_saturated(server, reply, folder, size, training))
            else:
                quiet.append(_saturated(server, reply, folder, size))
            server.wait_until_alone()
    return {"trainings": len(busy), **compared(busy, quiet)}


def _saturated(
    server: TrainedServer,
    reply: bytes,
    folder: Path,
    size: Size,
    training: Training | None = None,
) -> Stretch:
    with sending(server.address, request(), [reply], FULL, folder) as load:
        time.sleep(size.settle_s)
        began, cpu_s = time.monotonic(), training.cpu_s() if training else 0.0
        if training is None:
            time.sleep(size.saturated_s)
        elif training.wait(size.saturated_s) and training.ended_s - began < _SHORTEST_S:
            raise LoadError("a training ended before it could be measured")
        share = 0.0
        ended = time.monotonic()
        if training is not None and not training.ended_s:
            share = (training.cpu_s() - cpu_s) / (ended - began)
        answers = load.stop()
    _require_answers(load)
    found = answers.between(began, ended)
    return stretch_of(began, ended, found.took_us, len(found.at_s), trainer_share=share)


def _require_answers(load: checking_load.CheckedLoad | paced_load.PacedLoad) -> None:
    """LoadError where one failed: the figures of others would flatter the server."""
    if load.failed or load.unexpected:
        raise LoadError(
            f"{load.failed} requests failed and {load.unexpected} replies were not the champion's: "
            f"{load.complaint}"
        )


# What the figures are called in the result, and the most or the least that they are to be.
FIGURES: dict[str, tuple[str, float]] = {
    "p99_ratio": ("at most", 1.3),
    "p50_ratio": ("at most", 1.3),
    "saturated_p99_ratio": ("at most", 1.3),
    "throughput_ratio": ("at least", 0.9),
    "failed_requests": ("at most", 0),
}


def summary(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that are promised, from those of both loads."""
    return {
        "p99_ratio": parts["steady"]["p99_ratio"],
        "p50_ratio": parts["steady"]["p50_ratio"],
        "saturated_p99_ratio": parts["saturated"]["p99_ratio"],
        "throughput_ratio": parts["saturated"]["throughput_ratio"],
        "training_s": parts["steady"]["training_s"],
        "failed_requests": 0,  # one would have ended all
    }


def measure(folder: Path, size: Size, *options: str) -> dict[str, Any]:
    """Both loads on one server. LoadError where a request or a training failed."""
    averages = [os.getloadavg()[0]]
    with trained_server.serving(folder, size.history, *options) as server:
        reply = server.reply()
        alone_s = trained_alone_s(server)
        most = most_per_s(server, reply, folder / "load", 2.0)
        averages.append(os.getloadavg()[0])
        parts = {
            "steady": steady(server, reply, folder / "load", size, most * size.share),
            "saturated": saturated(server, reply, folder / "load", size, alone_s),
        }
        server.check_trainings()
        averages.append(os.getloadavg()[0])
    return {
        **summary(parts),
        "training_alone_s": alone_s,
        "most_per_s": most,
        "load_average": [round(each, 2) for each in averages],
        "parts": parts,
    }


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
    settings = [part for each in options.set for part in ("--set", each)]
    MADE.mkdir(parents=True, exist_ok=True)
    try:
        checking_load.compiled()
        paced_load.compiled()
        with tempfile.TemporaryDirectory(prefix=f"train-{os.getpid()}-", dir=MADE) as folder:
            result = measure(Path(folder), size, *settings)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (AbsentError, NotStartedError, LoadError, AdminError) as error:
        print(f"failed: {error}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, LoadError) else 2) from None
    result["environment"] = environment
    _show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _show(result: dict[str, Any]) -> None:
    print(json.dumps(result["environment"]))
    for name, part in result["parts"].items():
        for key in ("p50_us", "p99_us", "requests_per_s"):
            with_it, without = part[key]["training"], part[key]["without"]
            print(f"{name:10} {key:16} {with_it:10,.0f} while training {without:10,.0f} without")
        print(f"{name:10} {'trainer_share':16} {part['trainer_share']:10.2f} of a processor")
    alone_s, steady_s = result["training_alone_s"], result["training_s"]
    print(f"a training takes {alone_s:.1f} s alone and {steady_s:.1f} s under the steady load")
    for name, (which, limit) in FIGURES.items():
        print(f"{name:34} {result[name]:10.4g}   {which} {limit:g}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting of the server, as training.nice=0; as often as wanted",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
