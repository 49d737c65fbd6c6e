"""What h2load says is read as it is meant."""

import numpy as np
import pytest
from load import LoadError, framed, parse_log, parse_totals

SAID = """\
starting benchmark...
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 3.00s, 5215.50 req/s, 373.52KB/s
requests: 10433 total, 10432 started, 10431 done, 10430 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 10430 2xx, 0 3xx, 0 4xx, 1 5xx
traffic: 747.03KB (764963) total, 46.11KB (47217) headers (space savings 96.28%), 229.82KB (235335) data
                     min         max         mean         sd        +/- sd
time for request:      249us      6.19ms      1.52ms       505us    72.29%
"""


def test_totals_are_read_from_what_h2load_prints() -> None:
    sent = parse_totals(SAID)
    assert (sent.done, sent.succeeded, sent.data_bytes) == (10431, 10430, 235335)


def test_output_without_totals_is_an_error_that_quotes_it() -> None:
    with pytest.raises(LoadError, match="cannot connect"):
        parse_totals("cannot connect to 127.0.0.1:1")


def test_requests_are_counted_by_when_their_answer_came() -> None:
    log = "1000000\t200\t500000\n1400000\t200\t200000\n1900000\t-1\t300000\n"
    answers = parse_log(log)
    assert answers.status.tolist() == [200, 200, -1]
    assert answers.ended_between(1.5, 1.6).tolist() == [500000]
    assert answers.ended_between(1.5, 2.0).tolist() == [500000, 200000]
    assert answers.ended_between(0.0, 9.0).tolist() == [500000, 200000, 300000]


def test_a_log_of_nothing_has_no_answers() -> None:
    assert parse_log("").took_us.dtype == np.int64
    assert not len(parse_log("").took_us)


def test_a_message_is_framed_as_grpc_sends_it() -> None:
    assert framed(b"abc") == b"\x00\x00\x00\x00\x03abc"
    assert framed(bytes(70_000))[:5] == b"\x00\x00\x01\x11\x70"
