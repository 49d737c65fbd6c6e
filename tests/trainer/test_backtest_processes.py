"""A backtest's children: what they say, how they fail, how they end."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.trainer.backtest_processes import (
    ChildError,
    ServerProcess,
    WarmTrainers,
    train,
    verify,
)

LISTENING = {"inference": "127.0.0.1:1", "admin": "127.0.0.1:2", "frontend": "portable"}


def fake(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def server(tmp_path: Path, code: str) -> ServerProcess:
    return ServerProcess(tmp_path, tmp_path / "server.log", command=fake(code))


async def first_training(
    code: str, steps: list[tuple[str, float, str]], timeout_s: float = 60.0
) -> dict[str, Any]:
    return await train(
        Path("models"),
        "m",
        reason="first",
        event_time_ms=5,
        threads=2,
        timeout_s=timeout_s,
        on_progress=lambda *step: steps.append(step),
        command=fake(code),
    )


def test_a_training_tells_its_steps_and_its_result() -> None:
    steps: list[tuple[str, float, str]] = []
    code = (
        "import json, sys\n"
        "print(json.dumps({'progress': {'stage': 'fit', 'fraction': 0.5, 'message': 'trees'}}))\n"
        "print('a line of somebody else')\n"
        "print(json.dumps({'result': {'outcome': 'published', 'arguments': sys.argv[1:]}}))\n"
    )
    result = asyncio.run(first_training(code, steps))
    assert steps == [("fit", 0.5, "trees")]
    arguments = result["arguments"]
    assert arguments[:5] == ["train", "--models-dir", "models", "--model", "m"]
    assert arguments[arguments.index("--event-time-ms") + 1] == "5"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; print('error: no column x', file=sys.stderr); sys.exit(1)",
            "ended with exit code 1: no column x",
        ),
        ("pass", "ended with exit code 0: it said nothing"),
        (
            'print(\'{"result": {"outcome": "failed", "reason": "why"}}\')',
            "the first training failed: why",
        ),
    ],
)
def test_a_training_without_a_version_is_an_error_with_its_last_words(
    code: str, message: str
) -> None:
    with pytest.raises(ChildError, match=message):
        asyncio.run(first_training(code, []))


def test_a_training_that_hangs_is_ended() -> None:
    with pytest.raises(ChildError, match=r"took longer than 0\.05 s"):
        asyncio.run(first_training("import sys; sys.stdin.read()", [], timeout_s=0.05))


def test_settings_that_the_server_refuses_are_told_in_its_words(tmp_path: Path) -> None:
    asyncio.run(verify(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "trimtab.toml").write_text("[drift]\npxi = 1\n")
    with pytest.raises(ChildError, match=r"\[drift\] pxi: unknown setting; did you mean psi\?"):
        asyncio.run(verify(tmp_path))


def test_a_server_tells_where_it_listens_and_is_ended(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "print(os.getpid(), *sys.argv[1:], file=sys.stderr, flush=True)\n"
        f"print({json.dumps(LISTENING)!r}, flush=True)\n"
        "signal.pause()\n"
    )

    async def scenario() -> None:
        process = server(tmp_path, code)
        await process.start()
        assert (process.inference, process.admin) == ("127.0.0.1:1", "127.0.0.1:2")
        assert process.frontend == "portable"
        await process.aclose()
        await process.aclose()

    asyncio.run(scenario())
    pid, *arguments = (tmp_path / "server.log").read_text().split()
    assert arguments[:2] == ["serve", str(tmp_path)]
    assert {"--json", "--until-eof", "server.port=0", "server.metrics=false"} <= set(arguments)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; print('port 1 is taken', file=sys.stderr); sys.exit(1)",
            r"(?s)the server ended with exit code 1: .*port 1 is taken",
        ),
        ("print('hello', flush=True)", "instead of where it listens"),
        ("import sys; sys.stdin.read()", r"did not listen within 0\.5 s: it said nothing"),
    ],
)
def test_a_server_that_does_not_start_is_an_error_with_its_last_words(
    tmp_path: Path, code: str, message: str
) -> None:
    async def scenario() -> None:
        process = server(tmp_path, code)
        try:
            await process.start(timeout_s=0.5 if "stdin" in code else 60)
        finally:
            await process.aclose()

    with pytest.raises(ChildError, match=message):
        asyncio.run(scenario())


def test_a_server_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "print('out of memory', file=sys.stderr, flush=True)\n"
        f"print({json.dumps(LISTENING)!r}, flush=True)\n"
        f"os.kill(os.getpid(), {signal.SIGKILL.value})\n"
    )

    async def scenario() -> ChildError:
        process = server(tmp_path, code)
        await process.start()
        error = await process.wait_for_death()
        await process.aclose()
        return error

    text = str(asyncio.run(scenario()))
    assert "the server was killed by signal 9 during the replay" in text
    assert "out of memory" in text


def test_trainers_are_warm_when_they_say_so_and_leave_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "print(os.getpid(), os.environ['OMP_NUM_THREADS'], file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').close()\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    log = tmp_path / "trainers.log"

    async def scenario() -> Path:
        trainers = WarmTrainers(3, log, command=fake(code))
        await trainers.start()
        path = Path(trainers.command[-1])
        assert path.exists() and path.parent.stat().st_mode & 0o077 == 0
        await trainers.aclose()
        await trainers.aclose()
        return path

    path = asyncio.run(scenario())
    assert not path.parent.exists()
    pid, threads = log.read_text().split()
    assert threads == "3"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_server_is_told_of_the_trainers_that_are_warm(tmp_path: Path) -> None:
    host = "import sys; print('ready', flush=True); sys.stdin.read()"
    code = (
        "import sys\n"
        "print('\\n'.join(sys.argv[1:]), file=sys.stderr, flush=True)\n"
        f"print({json.dumps(LISTENING)!r}, flush=True)\n"
        "sys.stdin.read()\n"
    )

    async def scenario() -> tuple[str, ...]:
        trainers = WarmTrainers(2, tmp_path / "trainers.log", command=fake(host))
        process = ServerProcess(
            tmp_path, tmp_path / "server.log", trainers=trainers, command=fake(code)
        )
        try:
            await trainers.start()
            await process.start()
            return trainers.command
        finally:
            await process.aclose()
            await trainers.aclose()

    command = asyncio.run(scenario())
    arguments = (tmp_path / "server.log").read_text().splitlines()
    assert arguments[:2] == ["serve-replay", str(tmp_path)]
    assert json.loads(arguments[arguments.index("--trainer-command") + 1]) == list(command)
    assert arguments[arguments.index("--trainer-threads") + 1] == "2"
    assert "server.port=0" in arguments


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys; print('error: no sklearn', file=sys.stderr); sys.exit(1)",
            "keeps trainers warm ended with exit code 1: error: no sklearn",
        ),
        ("import sys; sys.stdin.read()", r"libraries were not loaded within 0\.5 s"),
    ],
)
def test_trainers_that_do_not_get_warm_are_an_error(
    tmp_path: Path, code: str, message: str
) -> None:
    async def scenario() -> None:
        trainers = WarmTrainers(1, tmp_path / "trainers.log", command=fake(code))
        try:
            await trainers.start(timeout_s=0.5 if "stdin" in code else 60)
        finally:
            await trainers.aclose()

    with pytest.raises(ChildError, match=message):
        asyncio.run(scenario())
