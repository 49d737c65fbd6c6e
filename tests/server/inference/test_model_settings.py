"""A model's own limits beside the server's."""

import pytest

from trimtab.server.config import BatchingConfig
from trimtab.server.inference.model_settings import ModelSettings

SERVER = BatchingConfig(max_batch_rows=64, max_queue_rows=1000, linger_ms=1.0)


def test_a_model_that_says_nothing_has_the_servers_batching() -> None:
    assert ModelSettings().batching(SERVER) == SERVER


@pytest.mark.parametrize(("said", "rows"), [(8, 8), (64, 64), (500, 64), (0, 64)])
def test_a_run_has_at_most_the_rows_of_both(said: int, rows: int) -> None:
    assert ModelSettings(max_batch_size=said).batching(SERVER).max_batch_rows == rows


def test_delay_and_queue_are_the_models() -> None:
    settings = ModelSettings(max_queue_delay_us=0, max_queue_size=5000)
    batching = settings.batching(SERVER)
    assert (batching.linger_ms, batching.max_queue_rows) == (0.0, 5000)
    assert ModelSettings(max_queue_delay_us=250).batching(SERVER).linger_ms == 0.25
