"""Folders import downwards only; inside a folder imports are relative; serving stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "proto": {"proto"},  # generated modules import each other absolutely
    "_native": set(),
    "registry": set(),
    "trainer": {"registry", "_native", "proto"},
    "server": {"proto", "registry", "_native"},
}
HEAVY = ("polars", "sklearn", "skl2onnx", "onnx", "matplotlib", "scipy", "pandas", "pyarrow")


def absolute_imports(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_down(folder: str) -> None:
    sources = list((ROOT / folder).rglob("*.py"))
    assert sources
    for source in sources:
        for name in absolute_imports(source):
            top, _, rest = name.partition(".")
            # `import server` from the repository root would load every module a second time.
            assert top not in MAY_IMPORT, f"{source}: {name}"
            if top == "trimtab":
                assert rest.split(".")[0] in MAY_IMPORT[folder], f"{source}: {name}"


def test_a_running_server_has_loaded_nothing_heavy(tmp_path: Path) -> None:
    """The whole application, started and stopped, in a process of its own."""
    script = f"""
import asyncio, pathlib, sys
from trimtab.server import app
from trimtab.server.config import load_server_config

config = load_server_config(
    pathlib.Path({str(tmp_path)!r}),
    None,
    {{"server.host": "127.0.0.1", "server.port": 0, "server.admin_port": 0, "server.metrics_port": 0}},
)

async def main():
    application = app.Application(config)
    await application.start()
    await application.stop()

asyncio.run(main())
import trimtab.server.commands.cli
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
assert not any(name.startswith("trimtab.trainer") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=tmp_path)
