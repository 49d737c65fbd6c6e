"""What a user installs: the sdist builds into the same wheel, and the wheel works elsewhere."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(600)  # everything is compiled
PACKAGES = {"proto", "server", "_native", "trainer", "registry"}


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with what pyproject.toml says a build requires."""
    home = tmp_path_factory.mktemp("builder")
    venv.create(home, with_pip=False)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    frontend = [f"{name}=={version(name)}" for name in ("build", "packaging", "pyproject_hooks")]
    run(
        sys.executable, "-m", "pip", "--python", str(home / "bin/python"),
        "install", "-q", "-c", str(ROOT / "build-constraints.txt"),
        *project["build-system"]["requires"], *frontend,
        cwd=home,
    )  # fmt: skip
    return home / "bin/python"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, builder: Path) -> tuple[Path, Path]:
    """(the wheel built from the sdist, the wheel built from a clean copy of the tree).

    The first is compiled, without optimisation: it is to be complete, not fast. In the second, which
    is there to be compared, all that would be compiled is empty.
    """
    out = tmp_path_factory.mktemp("dist")
    clone = tmp_path_factory.mktemp("clone") / "trimtab"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, tracked):
        source, target = ROOT / name, clone / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    quick = {
        variable: script(out / variable, f'exec {os.environ.get(variable, default)} "$@" -O0')
        for variable, default in (("CC", "gcc"), ("CXX", "g++"))
    }
    nothing = script(
        out / "nothing", 'while [ $# -gt 1 ]; do [ "$1" != -o ] || : >"$2"; shift; done'
    )
    build = [str(builder), "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir"]
    run(*build, str(out / "sdist"), cwd=clone, **quick)
    run(*build, str(out / "tree"), "--wheel", cwd=clone, CC=nothing, CXX=nothing)
    (from_sdist,) = (out / "sdist").glob("*.whl")
    (from_tree,) = (out / "tree").glob("*.whl")
    return from_sdist, from_tree


def script(path: Path, line: str) -> str:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(  # noqa: PLW1510 - the assertion below shows what it printed
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(wheel: Path) -> dict[str, int]:
    """A checksum by name; 0 for what is compiled and for the list of the checksums."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            item.filename: 0 if item.filename.endswith((".so", "RECORD")) else item.CRC
            for item in archive.infolist()
        }


@pytest.mark.e2e
def test_the_sdist_builds_into_the_same_wheel_as_the_tree(wheels: tuple[Path, Path]) -> None:
    from_sdist, from_tree = wheels
    assert contents(from_sdist) == contents(from_tree)


@pytest.mark.e2e
def test_the_wheel_holds_the_packages_and_nothing_else(wheels: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trimtab"}
    assert {name.split("/")[1] for name in names if name.startswith("trimtab/")} == PACKAGES
    for module in ("proto/admin_pb2.py", "proto/admin.proto", "_native/py.typed"):
        assert f"trimtab/{module}" in names


@pytest.mark.e2e
def test_an_installed_wheel_gives_the_command(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    """In another environment, away from the tree; its libraries are this environment's."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    run(
        sys.executable, "-m", "pip", "--python", str(python),
        "install", "-q", "--no-deps", "--no-index", str(wheels[0]),
        cwd=tmp_path,
    )  # fmt: skip
    (site,) = (Path(sys.executable).parents[1] / "lib").glob("python3*/site-packages")
    (installed,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (installed / "borrowed.pth").write_text(f"{site}\n")
    shown = run(str(tmp_path / "venv/bin/trimtab"), "--help", cwd=tmp_path)
    assert "serve" in shown
    where = run(
        str(python),
        "-c",
        "import trimtab.server.commands.cli as m; print(m.__file__)",
        cwd=tmp_path,
    )
    assert Path(where.strip()).is_relative_to(tmp_path)
