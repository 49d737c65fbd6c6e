"""What serving costs, beside other servers on the same machine: `python benchmarks/serving.py`.

Every server of a case runs at once, in processes of its own, and the servers take turns: each one's
first round, then each one's second. A slow moment of the machine then slows all of them. Figures
are medians over the rounds, ratios the median of the rounds' ratios. Before and after each round a
real call is made and its outputs are compared with onnxruntime's, and the bytes that came back and
Trimtab's own counters must say that all requests were answered.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import contestants
import echo_program
import load
import numpy as np
import peer_servers
import serving_models
import serving_report
from contestants import EVERY_ROW, NOT_WATCHED, Contestant, Counters, Starter, Trial
from environment import describe
from load import FRAME_BYTES, Load, LoadError
from making import MADE, AbsentError
from processes import NotStartedError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from serving_models import Model, Question, WrongAnswerError

from trimtab.server.commands.admin_client import AdminError

TRIMTAB = ("trimtab_native", "trimtab_portable")
ECHOES = ("cpp_echo", "grpc_aio_echo")
PEERS = ("mlserver", "triton_python_backend")
STARTERS: dict[str, Starter] = {
    "trimtab_native": partial(contestants.trimtab, "native"),
    "trimtab_portable": partial(contestants.trimtab, "portable"),
    "cpp_echo": contestants.cpp_echo,
    "grpc_aio_echo": contestants.grpc_aio_echo,
    "mlserver": peer_servers.mlserver,
    "triton_python_backend": peer_servers.triton_python_backend,
}
WIDE, ALONE = Load(8, 32), Load(1, 1)
MEMORY_SAMPLES = 10


@dataclass(frozen=True)
class Case:
    """One load on one model. Cases of the same group take turns with each other as well."""

    name: str
    group: str
    model: str
    rows: int
    load: Load
    servers: Sequence[str]
    settings: str = ""  # of Trimtab, as TOML

    @property
    def watched(self) -> bool:
        """For drift, and in the traffic log."""
        return self.settings != NOT_WATCHED


CASES = (
    Case("one_row_8x32", "one row", "logistic", 1, WIDE, TRIMTAB + ECHOES + PEERS),
    Case("one_row_8x32_no_drift", "one row", "logistic", 1, WIDE, TRIMTAB, NOT_WATCHED),
    Case("one_row_1x1", "one in flight", "logistic", 1, ALONE, TRIMTAB + ECHOES + PEERS),
    Case("rows64_8x32", "64 rows", "logistic", 64, WIDE, TRIMTAB + ECHOES + PEERS),
    Case("rows64_8x32_no_drift", "64 rows", "logistic", 64, WIDE, TRIMTAB, NOT_WATCHED),
    Case("rows64_8x32_every_row", "64 rows", "logistic", 64, WIDE, TRIMTAB, EVERY_ROW),
    Case("trees_8x32", "trees", "trees", 1, WIDE, TRIMTAB + PEERS),
    Case("strings_8x32", "strings", "strings", 1, WIDE, TRIMTAB + PEERS),
)
_FAILURES = (WrongAnswerError, LoadError, NotStartedError, AdminError)


@dataclass(frozen=True)
class Round:
    """The figures of one server's turn."""

    cpu_us_per_request: float
    requests_per_s: float
    p50_us: float
    p99_us: float
    resident_mb: float
    log_rows_dropped: int = 0  # Trimtab's: rows of the traffic log that came faster than it writes


@dataclass
class Entry:
    """A server in a case, and what came of it."""

    case: Case
    server: str
    question: Question
    running: Contestant
    rounds: list[Round]
    failure: str = ""


class Benchmark:
    """Runs the chosen cases; everything it starts is gone when a method returns or raises."""

    def __init__(
        self,
        options: argparse.Namespace,
        cases: Sequence[Case],
        folder: Path,
        progress: Progress,
    ) -> None:
        self._options = options
        self._cases = cases
        self._folder = folder
        self._progress = progress
        self._models: dict[str, Model] = {}
        self.failures: list[str] = []

    def compare(self) -> dict[str, dict[str, Any]]:
        """The figures of each server in each case."""
        result: dict[str, dict[str, Any]] = {case.name: {} for case in self._cases}
        for group in dict.fromkeys(case.group for case in self._cases):
            cases = [case for case in self._cases if case.group == group]
            with ExitStack() as running:
                entries = list(self._start(cases, running, result))
                self._take_turns(group, entries)
            for entry in entries:
                if entry.failure:
                    self.failures.append(f"{entry.case.name}, {entry.server}: {entry.failure}")
                    result[entry.case.name][entry.server] = {"absent": f"failed: {entry.failure}"}
                else:
                    result[entry.case.name][entry.server] = serving_report.medians(
                        [asdict(each) for each in entry.rounds]
                    )
        return result

    def remember(self, requests: int) -> dict[str, Any]:
        """Resident memory of each Trimtab server while it answers so many 1-row requests."""
        result: dict[str, Any] = {}
        case = replace(CASES[0], name="memory", servers=TRIMTAB)
        part = max(requests // MEMORY_SAMPLES, WIDE.in_flight)
        for server in self._servers(case):
            try:
                with self._started(case, server) as (question, running):
                    body = self._body(f"memory-{server}", question)
                    task = self._progress.add_task(f"memory, {server}", total=MEMORY_SAMPLES)
                    running.ask(question.request)
                    samples = []
                    for _ in range(MEMORY_SAMPLES):
                        load.counted(running.address, body, WIDE, part)
                        samples.append(running.process.resident_bytes() / 2**20)
                        self._progress.advance(task)
                    running.ask(question.request)
            except AbsentError as error:
                result[server] = {"absent": str(error)}
            except _FAILURES as error:
                self.failures.append(f"memory, {server}: {error}")
                result[server] = {"absent": f"failed: {error}"}
            else:
                result[server] = {
                    "requests": part * MEMORY_SAMPLES,
                    "samples_mb": samples,
                    "growth_second_half_mb": samples[-1] - samples[MEMORY_SAMPLES // 2 - 1],
                }
        return result

    def _servers(self, case: Case) -> list[str]:
        return [server for server in case.servers if server in self._options.servers]

    def _start(
        self, cases: Sequence[Case], running: ExitStack, result: dict[str, dict[str, Any]]
    ) -> Iterator[Entry]:
        for case in cases:
            for server in self._servers(case):
                task = self._progress.add_task(f"{case.name}: starting {server}", total=None)
                try:
                    question, started = running.enter_context(self._started(case, server))
                except (AbsentError, NotStartedError) as error:
                    result[case.name][server] = {"absent": str(error)}
                else:
                    yield Entry(case, server, question, started, [])
                finally:
                    self._progress.remove_task(task)

    @contextmanager
    def _started(self, case: Case, server: str) -> Iterator[tuple[Question, Contestant]]:
        if case.model not in self._models:
            maker = serving_models.MAKERS[case.model]
            self._models[case.model] = maker(self._folder / "models")
        question = serving_models.ask(self._models[case.model], case.rows)
        with tempfile.TemporaryDirectory(dir=self._folder) as own:  # its traffic log may be large
            starter = STARTERS[server]
            with starter(
                Trial(question, case.load, case.settings), Path(own) / "server"
            ) as running:
                yield question, running

    def _take_turns(self, group: str, entries: Sequence[Entry]) -> None:
        options = self._options
        bodies = {id(entry): self._body(f"{entry.case.name}-{entry.server}", entry.question)
                  for entry in entries}  # fmt: skip
        task = self._progress.add_task(group, total=options.rounds * len(entries))
        for _ in range(options.rounds):
            for entry in entries:
                self._progress.update(task, description=f"{entry.case.name}, {entry.server}")
                if not entry.failure:
                    try:
                        entry.rounds.append(_measure(entry, bodies[id(entry)], options))
                    except _FAILURES as error:
                        entry.failure = str(error)
                self._progress.advance(task)
        self._progress.update(task, description=group)

    def _body(self, name: str, question: Question) -> Path:
        path = self._folder / f"{name}.grpc"
        path.write_bytes(load.framed(question.request))
        return path


def _measure(entry: Entry, body: Path, options: argparse.Namespace) -> Round:
    """One turn: a call, a warm-up, the timed part, a call; and that all were answered."""
    server, request, case = entry.running, entry.question.request, entry.case
    shortest = server.ask(request)
    if options.warm_up:
        load.timed(server.address, body, case.load, options.warm_up, server.process.cpu_s)
    before = server.counters() if server.counters else None
    timed = load.timed(server.address, body, case.load, options.seconds, server.process.cpu_s)
    longest = server.ask(request)
    check_bytes(timed.sent, shortest, longest, case.load)
    dropped = 0
    if before is not None and server.counters is not None:
        after = server.counters()
        check_counters(before, after, timed.sent.done, case)
        dropped = after.dropped_rows - before.dropped_rows
    p50, p99 = np.percentile(timed.took_us, [50, 99])
    return Round(
        cpu_us_per_request=timed.cpu_s * 1e6 / len(timed.took_us),
        requests_per_s=len(timed.took_us) / timed.seconds,
        p50_us=float(p50),
        p99_us=float(p99),
        resident_mb=server.process.resident_bytes() / 2**20,
        log_rows_dropped=dropped,
    )


def check_bytes(sent: load.Sent, before: int, after: int, offered: Load) -> None:
    """An error has no message: every answer must be as long as a real reply is.

    A reply may grow with the number in the id that the server gives it; the replies before and
    after say by how much. h2load stops with answers under way, and counts their bytes.
    """
    shortest, longest = min(before, after) + FRAME_BYTES, max(before, after) + FRAME_BYTES
    low, high = sent.done * shortest, (sent.done + offered.in_flight) * longest
    if not low <= sent.data_bytes <= high:
        raise WrongAnswerError(
            f"{sent.done} requests brought {sent.data_bytes} bytes, not {low} to {high}: "
            "not all of them were answered with a message"
        )


def check_counters(before: Counters, after: Counters, done: int, case: Case) -> None:
    """That Trimtab computed the requests, and watched them where it should and nowhere else."""
    rows = after.rows - before.rows
    if after.requests - before.requests < done or rows < done * case.rows:
        raise WrongAnswerError(
            f"{done} requests of {case.rows} rows were answered, but the server counted "
            f"{after.requests - before.requests} requests and {rows} rows"
        )
    for what, grown in (
        ("the drift monitor", after.observed_rows - before.observed_rows),
        ("the traffic log", after.logged_rows - before.logged_rows),
    ):
        if case.watched and grown < 0.5 * rows:  # it may be some rows behind
            raise WrongAnswerError(f"{what} counted {grown} of {rows} rows")
        if not case.watched and grown:
            raise WrongAnswerError(f"{what} counted {grown} rows, though it is off")


def main() -> None:
    options = _options()
    if not load.is_installed():
        print(f"h2load is missing: apt-get install {load.PACKAGE}", file=sys.stderr)
        raise SystemExit(2)
    # A shell lets what it starts in the background ignore the interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases = [case for case in CASES if case.name in options.cases]
    environment = {
        **describe(),
        "date": time.strftime("%Y-%m-%d"),
        "h2load": load.version(),
        "grpc++": echo_program.grpc_release(),
        "peers": {
            name: peer_servers.requirements(name) for name in PEERS if name in options.servers
        },
        "command": shlex.join(["python", *sys.argv]),
        "seconds": options.seconds,
        "rounds": options.rounds,
    }
    MADE.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment}
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f"run-{os.getpid()}-", dir=MADE) as folder,
            Progress(*columns, TimeElapsedColumn(), console=errors, transient=True) as progress,
        ):
            benchmark = Benchmark(options, cases, Path(folder), progress)
            result["cases"] = benchmark.compare()
            result["ratios"] = serving_report.ratios(result["cases"])
            result["memory"] = benchmark.remember(options.memory_requests) if options.memory else {}
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    # A file or a pipe has no width of its own, and rich's 80 columns are too few for the tables.
    serving_report.show(result, Console(width=None if sys.stdout.isatty() else 120))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    for failure in benchmark.failures:
        errors.print(f"failed: {failure}", style="red", highlight=False)
    if benchmark.failures:
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    def names(known: Mapping[str, Any]) -> Any:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            for name in chosen:
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
            return chosen

        return parse

    cases = {case.name: case for case in CASES}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, help="write the figures there")
    add("--seconds", type=float, default=3.0, help="length of a round's timed part (3)")
    add("--warm-up", type=float, default=1.0, help="seconds of load before it (1)")
    add("--rounds", type=int, default=5, help="rounds per case (5)")
    add("--cases", type=names(cases), default=list(cases), help="a,b: these only")
    add("--servers", type=names(STARTERS), help="a,b: these only")
    add("--peers", action="store_true", help="MLServer and Triton as well; installs them once")
    add("--memory-requests", type=int, default=1_000_000, help="of the memory case (1,000,000)")
    add("--no-memory", dest="memory", action="store_false", help="leave the memory case out")
    options = parser.parse_args()
    if options.servers is None:
        options.servers = [*TRIMTAB, *ECHOES, *(PEERS if options.peers else ())]
    return options


if __name__ == "__main__":
    main()
