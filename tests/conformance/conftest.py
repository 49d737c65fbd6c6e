"""The frontends that are held to the protocol, and the environments of the clients that ask them.

An environment is made once, then reused until its requirements change.
"""

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PERF_ANALYZER = "perf-analyzer==2.60.0"


@pytest.fixture(scope="module", params=["native", "portable"])
def frontend(request: pytest.FixtureRequest) -> str:
    """The name of each transport that was built here."""
    name = str(request.param)
    if name == "native" and find_spec("trimtab._native.grpc_frontend") is None:
        pytest.skip("the native frontend was not built here")
    return name


@pytest.fixture(scope="session")
def client_python() -> Path:
    """The interpreter of build/conformance-venv, which has tritonclient."""
    why = _environment("conformance-venv", REQUIREMENTS.read_text().splitlines())
    assert not why, why
    return ROOT / "build/conformance-venv/bin/python"


@pytest.fixture(scope="session")
def perf_analyzer() -> Path:
    """Triton's load generator: the one on PATH, else that of build/perf-analyzer-venv."""
    found = shutil.which("perf_analyzer")
    if found is None:
        libc = "-".join(platform.libc_ver())
        if why := _environment("perf-analyzer-venv", [PERF_ANALYZER]):
            pytest.skip(f"{PERF_ANALYZER} has no wheel for {libc} here: {why.splitlines()[-1]}")
        found = str(ROOT / "build/perf-analyzer-venv/bin/perf_analyzer")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip()
    if "Perf Analyzer Version" not in said:  # its wheel's command exits with 0 in any case
        pytest.skip(f"{found} does not run here: {said}")
    return Path(found)


def _environment(name: str, requirements: list[str]) -> str:
    """Makes build/`name`; why it cannot be had, where no wheel fits this system."""
    directory = ROOT / "build" / name
    wanted = hashlib.sha256(("\n".join(requirements) + sys.version).encode()).hexdigest()
    stamp = directory / "made-of"
    python = directory / "bin" / "python"
    directory.parent.mkdir(exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs share one checkout
        known = stamp.read_text().split("\n", 1) if stamp.exists() else [""]
        if known[0] == wanted:
            return known[1] if len(known) > 1 else ""
        plain = [line for line in requirements if not line.startswith("#")]
        why = ""
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(directory)],
            [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *plain],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and "No matching distribution found" in done.stderr:
                why = done.stderr.strip()
                break
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        stamp.write_text(f"{wanted}\n{why}" if why else wanted)
        return why
