"""What a figure was measured on: printed and written beside every result."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("trimtab", "numpy", "onnxruntime", "grpcio", "protobuf")


def describe() -> dict[str, Any]:
    """Processor, cores, load, and the versions that matter."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in _PACKAGES},
    }
