"""The serving benchmark's figures, put together: medians, the ratios that matter, tables.

Pure functions over what was measured, and one that prints.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_FIGURES = {  # key: (heading, digits)
    "cpu_us_per_request": ("CPU µs/request", 1),
    "requests_per_s": ("requests/s", 0),
    "p50_us": ("p50 µs", 0),
    "p99_us": ("p99 µs", 0),
    "resident_mb": ("memory MB", 0),
}
# (what is divided, by which server)
_AGAINST = (
    ("cpu_us_per_request", "cpp_echo"),
    ("requests_per_s", "grpc_aio_echo"),
    ("p50_us", "grpc_aio_echo"),
    ("cpu_us_per_request", "mlserver"),
    ("cpu_us_per_request", "triton_python_backend"),
)
_OFF = "_no_drift"
_EVERY_ROW = "_every_row"

Figures = Mapping[str, Any]
Cases = Mapping[str, Mapping[str, Figures]]


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The median of each figure over the rounds, and the rounds themselves, in their order."""
    found: dict[str, Any] = {
        name: statistics.median(each[name] for each in rounds) for name in _FIGURES
    }
    if dropped := sum(each.get("log_rows_dropped", 0) for each in rounds):
        found["log_rows_dropped"] = dropped
    return {**found, "rounds": list(rounds)}


def ratios(cases: Cases) -> dict[str, dict[str, float]]:
    """By case, "server figure / other": the median of the ratios of each round."""
    result: dict[str, dict[str, float]] = {}
    for case, servers in cases.items():
        found = result.setdefault(case, {})
        for server in servers:
            if not server.startswith("trimtab"):
                continue
            for figure, other in _AGAINST:
                ratio = _ratio(servers[server], servers.get(other), figure)
                if ratio is not None:
                    found[f"{server} {figure} / {other}"] = ratio
            off = cases.get(case.removesuffix(_EVERY_ROW) + _OFF, {}).get(server)
            ratio = _ratio(servers[server], off, "cpu_us_per_request")
            if ratio is not None:
                found[f"{server} cpu_us_per_request / not watched"] = ratio
    return {case: found for case, found in result.items() if found}


def _ratio(ours: Figures, others: Figures | None, figure: str) -> float | None:
    if others is None or "absent" in ours or "absent" in others:
        return None
    pairs = zip(ours["rounds"], others["rounds"], strict=True)
    return float(statistics.median(mine[figure] / theirs[figure] for mine, theirs in pairs))


def show(result: Mapping[str, Any], console: Console) -> None:
    """A table for each case, the ratios, the memory."""
    environment = result["environment"]
    console.print(
        f"{environment['processor']}, {environment['cores']} cores, load {environment['load']}; "
        f"{environment['rounds']} rounds of {environment['seconds']:g} s; medians",
        highlight=False,
        soft_wrap=True,
    )
    for case, servers in result["cases"].items():
        if servers:
            console.print(_case_table(case, servers))
    if result["ratios"]:
        table = Table("case", "ratio", title="Ratios")
        table.add_column("", justify="right")
        for case, found in result["ratios"].items():
            for name, value in found.items():
                table.add_row(case, name, f"{value:.2f}")
        console.print(table)
    if result["memory"]:
        console.print(_memory_table(result["memory"]))
    reasons = {
        (server, figures["absent"]): None
        for servers in [*result["cases"].values(), result["memory"]]
        for server, figures in servers.items()
        if "absent" in figures
    }
    for server, reason in reasons:
        console.print(f"{server} is absent: {reason}", highlight=False, soft_wrap=True)


def _case_table(case: str, servers: Mapping[str, Figures]) -> Table:
    table = Table("server", title=case)
    for heading, _ in _FIGURES.values():
        table.add_column(heading, justify="right")
    table.add_column("")
    for server, figures in servers.items():
        if "absent" in figures:
            table.add_row(server, *[""] * len(_FIGURES), "absent")
            continue
        cells = [f"{figures[name]:,.{digits}f}" for name, (_, digits) in _FIGURES.items()]
        dropped = figures.get("log_rows_dropped", 0)
        table.add_row(server, *cells, f"log dropped {dropped:,} rows" if dropped else "")
    return table


def _memory_table(memory: Mapping[str, Figures]) -> Table:
    table = Table("server", title="Resident memory, MB")
    for heading in ("requests", "after each tenth", "growth over the second half"):
        table.add_column(heading, justify="right")
    for server, figures in memory.items():
        if "absent" in figures:
            table.add_row(server, "", "absent", "")
            continue
        samples = " ".join(f"{sample:.0f}" for sample in figures["samples_mb"])
        growth = f"{figures['growth_second_half_mb']:+.1f}"
        table.add_row(server, f"{figures['requests']:,}", samples, growth)
    return table
