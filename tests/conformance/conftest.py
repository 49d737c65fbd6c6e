"""The environment of the client: made once, then reused until its requirements change."""

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build" / "conformance-venv"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


@pytest.fixture(scope="session")
def client_python() -> Iterator[Path]:
    """The interpreter of build/conformance-venv, which has tritonclient."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = ENVIRONMENT / "made-of"
    python = ENVIRONMENT / "bin" / "python"
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with ENVIRONMENT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs share one checkout
        if not stamp.exists() or stamp.read_text() != wanted:
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)],
                [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
            stamp.write_text(wanted)
    yield python
