"""A scrape of a real server agrees with what its clients saw."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import models
from tests.loop_fakes import wait_until
from tests.served import Served, served

pytestmark = pytest.mark.e2e

OF_M = (("model", "m"), ("version", "1"))


def scrape(server: Served) -> tuple[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """The text, and value by name and labels."""
    with urllib.request.urlopen(f"http://{server.banner['metrics']}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    return text, {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_shows_what_was_asked_and_answered(tmp_path: Path) -> None:
    models.publish(tmp_path, "m", models.scaled(3.0))
    with served(tmp_path) as server:
        for rows in (1, 3, 64):
            server.infer("m", {"x": np.ones((rows, 2), np.float32)})
        server.settle("m", 68)
        text, shown = scrape(server)

        assert 'nv_inference_request_success{model="m",version="1"} 3.0' in text.splitlines()
        assert 'nv_inference_count{model="m",version="1"} 68.0' in text.splitlines()
        runs = shown["nv_inference_exec_count_total", OF_M]
        assert 1 <= runs <= 3
        assert shown["trimtab_batch_rows_count", OF_M] == runs
        assert shown["trimtab_batch_rows_sum", OF_M] == 68
        assert shown["trimtab_request_duration_seconds_count", OF_M] == 3
        took = shown["trimtab_request_duration_seconds_sum", OF_M]
        assert took > 0
        assert shown["nv_inference_request_duration_us_total", OF_M] == pytest.approx(
            took * 1e6, abs=1
        )
        assert shown["nv_inference_pending_request_count", OF_M] == 0
        failures = [value for key, value in shown.items() if "request_failure" in key[0]]
        assert failures == [0, 0, 0, 0]
        assert shown["trimtab_model_ready", (("model", "m"),)] == 1
        assert shown["trimtab_champion_version", (("model", "m"),)] == 1
        assert shown["trimtab_observed_rows_total", (("model", "m"),)] == 68
        errors = {key: value for key, value in shown.items() if "scrape_errors" in key[0]}
        assert errors and set(errors.values()) == {0}
        assert server.stop() == 0


def test_a_version_that_is_unloaded_leaves_the_scrape(tmp_path: Path) -> None:
    for factor in (1.0, 2.0, 3.0):
        models.publish(tmp_path, "m", models.scaled(factor))
    with served(tmp_path) as server:
        for version in (2, 3):
            server.admin.promote("m", version, actor="test", reason="next")
        server.infer("m", {"x": np.ones((1, 2), np.float32)})

        def loaded() -> set[str]:
            _, shown = scrape(server)
            return {dict(key[1])["version"] for key in shown if key[0] == "trimtab_queue_rows"}

        # The champion before the last is unloaded right after the promotion, and nobody is told.
        wait_until(lambda: loaded() == {"2", "3"}, "the unloading of version 1")
        assert server.stop() == 0
