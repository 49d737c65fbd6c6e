"""Where the benchmark keeps what it compiles and installs, and how it runs compilers and pip."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
MADE = ROOT / "build" / "bench"


class AbsentError(Exception):
    """A server cannot take part; the text is the reason, in one sentence."""


def run(*command: str | Path, hint: str = "") -> str:
    """What a command printed. AbsentError with its last complaint, and what might help."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise AbsentError(f"there is no {command[0]}{hint}") from error
    if done.returncode:
        lines = done.stderr.splitlines() or ["it said nothing"]
        said = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise AbsentError(f"{Path(command[0]).name} failed: {said[0].strip()}{hint}")
    return done.stdout.strip()


def environment(name: str, requirements: list[str]) -> Path:
    """The interpreter of a virtual environment, made anew where its requirements changed."""
    folder = MADE / "venvs" / name
    stamp, python = folder / "made-of", folder / "bin" / "python"
    wanted = sha256("\n".join([*requirements, sys.version]).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.parent.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "venv", "--clear", folder)
        run(python, "-m", "pip", "install", "--quiet", *requirements)
        stamp.write_text(wanted)
    return python
