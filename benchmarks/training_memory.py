"""How much memory a training takes on a large log: rows, seconds, peak MiB.

    python benchmarks/training_memory.py --rows 20000000 --columns 30 --json

Writes a traffic log and its labels as the server's rolling leaves them (Parquet files of 500,000
rows, one request a row, the worst case for joins) and reads the training window in a process of its
own, whose peak is the kernel's figure. Libraries alone are measured too: what they take is no data.
With `--train` a whole training is run on it as well: fit, export, gates, version.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_FILE_ROWS = 500_000
_DAY_MS = 86_400_000
_START_MS = 1_700_000_000_000
_CATEGORIES = 5  # of the columns
_MODEL = "m"


def write_log(data: Path, rows: int, columns: int, labelled: float) -> None:
    """`rows` served rows over a year, a share of them with a label."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    (data / "traffic" / "day=2024-01-01").mkdir(parents=True)
    (data / "labels").mkdir()
    words = np.array([f"category {number}" for number in range(40)])
    for number, first in enumerate(range(0, rows, _FILE_ROWS), start=1):
        count = min(_FILE_ROWS, rows - first)
        times = _START_MS + (np.arange(first, first + count) * (365 * _DAY_MS / rows)).astype(int)
        ids = pl.int_range(first, first + count, eager=True).cast(pl.String).str.zfill(36)
        numeric = random.normal(size=(columns - _CATEGORIES, count)).astype(np.float32)
        frame = pl.DataFrame(
            {"id": ids, "row": np.zeros(count, np.uint32), "event_time": times}
            | {f"in.x{at}": values for at, values in enumerate(numeric)}
            | {f"in.c{at}": random.choice(words, count) for at in range(_CATEGORIES)}
        )
        seg = data / "traffic" / "day=2024-01-01" / f"seg-{number:08d}.parquet"
        frame.write_parquet(seg, compression="zstd", compression_level=1)
        told = random.random(count) < labelled
        labels = pl.DataFrame(
            {
                "id": ids.filter(pl.Series(told)),
                "row": np.zeros(int(told.sum()), np.uint32),
                "number": (numeric[0] + random.normal(size=count))[told].astype(np.float64),
                "text": pl.Series([None] * int(told.sum()), dtype=pl.String),
                "event_time": times[told] + _DAY_MS,
            }
        )
        labels.write_parquet(data / "labels" / f"labels-{number:08d}.parquet")


def read_window(data: Path, columns: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """In the child: the data stage alone, and this process's peak."""
    from trimtab.trainer.dataset import Dataset
    from trimtab.trainer.recipe import Recipe

    libraries = _peak_mib()
    began = time.monotonic()
    window = Dataset.read(Recipe.parse(_recipe_of(columns, recipe)), data)
    return {
        "seconds": round(time.monotonic() - began, 2),
        "peak_mib": _peak_mib(),
        "libraries_mib": libraries,
        "trained_rows": len(window),
        "rate": window.sampling["rate"],
        "window_rows": window.sampling["window_rows"],
        "sha256": window.sha256(),
    }


def _recipe_of(columns: int, recipe: dict[str, Any]) -> dict[str, Any]:
    table = {
        "task": "regression",
        "target": "y",
        "numeric": [f"x{at}" for at in range(columns - _CATEGORIES)],
        "categorical": [f"c{at}" for at in range(_CATEGORIES)],
        "time": "when",
    }
    return {**table, **recipe}


def train(models: Path, columns: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """A training as the server starts one, on one thread."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in _recipe_of(columns, recipe).items()]
    (models / _MODEL).mkdir(exist_ok=True)
    (models / _MODEL / "trimtab.toml").write_text("\n".join(["[recipe]", *lines, ""]))
    command = [sys.executable, "-m", "trimtab.trainer", "train", f"--models-dir={models}"]
    began = time.monotonic()
    with subprocess.Popen(
        [*command, f"--model={_MODEL}", "--progress=json", "--threads=1"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    result = json.loads(said.splitlines()[-1])["result"]
    return {
        "train_outcome": result["outcome"],
        "train_rows": result["rows"],
        "train_seconds": round(time.monotonic() - began, 2),
        "train_peak_mib": usage.ru_maxrss // 1024,
    }


def _peak_mib() -> int:
    """Of this program; getrusage would count what the parent had when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def measure(data: Path, columns: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """The data stage in a process of its own."""
    command = [sys.executable, __file__, "--read", str(data), "--columns", str(columns)]
    environment = {**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--recipe", json.dumps(recipe)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--columns", type=int, default=30)
    options.add_argument("--labelled", type=float, default=1.0, help="share of rows with a label")
    options.add_argument("--sample-mb", type=int, default=200)
    options.add_argument("--window-rows", type=int, default=100_000_000)
    options.add_argument("--period", default="91d", help="empty: the newest rows")
    options.add_argument("--data", type=Path, help="keep the log here, and take what is there")
    options.add_argument("--train", action="store_true", help="also run a whole training")
    options.add_argument("--json", action="store_true")
    options.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--recipe", default="{}", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.read:
        print(json.dumps(read_window(asked.read, asked.columns, json.loads(asked.recipe))))
        return
    recipe = {
        "sample_mb": asked.sample_mb,
        "window_rows": asked.window_rows,
        "period": asked.period,
    }
    with tempfile.TemporaryDirectory(prefix="trimtab-memory-") as scratch:
        models = asked.data or Path(scratch)
        data = models / ".trimtab" / _MODEL
        if not data.exists():
            write_log(data, asked.rows, asked.columns, asked.labelled)
        found = {"rows": asked.rows, "columns": asked.columns, **recipe}
        found |= measure(data, asked.columns, recipe)
        if asked.train:
            found |= train(models, asked.columns, recipe)
    if asked.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<14} {value}")


if __name__ == "__main__":
    main()
