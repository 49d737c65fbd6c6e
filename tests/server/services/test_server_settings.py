"""Trace settings are all off and stay so; log settings are the level of the log."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from trimtab.proto import open_inference_pb2 as pb
from trimtab.server.errors import InvalidRequestError, NotFoundError, TrimtabError, UnsupportedError
from trimtab.server.services.handlers import CallContext, UnaryHandler
from trimtab.server.services.server_settings import ServerSettingsService, level_after, settings_of

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


def call(method: str, request: bytes, logger: logging.Logger) -> bytes:
    service = ServerSettingsService(lambda model: model == "m", logger)
    handler = service.handlers()[f"/inference.GRPCInferenceService/{method}"]

    async def handled() -> bytes:
        assert isinstance(handler, UnaryHandler)
        return await handler.handle(request, CallContext())

    return asyncio.run(handled())


# -- traces


def trace(settings: dict[str, list[str]], model: str = "") -> dict[str, list[str]]:
    request = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        request.settings[name].value.extend(values)
    raw = call("TraceSetting", request.SerializeToString(), logging.getLogger("trimtab.test"))
    reply = pb.TraceSettingResponse.FromString(raw)
    return {name: list(setting.value) for name, setting in reply.settings.items()}


@pytest.mark.parametrize(
    "settings", [{}, {"trace_level": ["OFF"]}, {"trace_rate": [], "trace_count": ["-1"]}]
)
def test_trace_settings_are_off(settings: dict[str, list[str]]) -> None:
    assert trace(settings) == trace({}, "m") == {
        "trace_file": [""],
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_mode": ["triton"],
    }  # fmt: skip


def test_tracing_cannot_be_turned_on() -> None:
    with pytest.raises(UnsupportedError, match=r"^tracing is not supported: trace_level can only"):
        trace({"trace_level": ["TIMESTAMPS", "TENSORS"]})
    with pytest.raises(UnsupportedError, match=r"trace_file can only be ''"):
        trace({"trace_level": ["OFF"], "trace_file": ["/tmp/trace.json"]})
    with pytest.raises(InvalidRequestError, match="there is no trace setting 'nope'"):
        trace({"nope": ["1"]})
    with pytest.raises(NotFoundError, match="Request for unknown model: 'other' is not found"):
        trace({}, "other")


# -- the log


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (INFO, {}, INFO),
        (INFO, {"log_verbose_level": 1}, DEBUG),
        (DEBUG, {"log_verbose_level": 0}, INFO),
        (WARNING, {"log_verbose_level": 0}, WARNING),
        (INFO, {"log_info": False}, WARNING),
        (INFO, {"log_warning": False, "log_info": False}, ERROR),
        (INFO, {"log_warning": False}, ERROR),
        (INFO, {"log_error": False}, logging.CRITICAL + 10),
        (logging.CRITICAL + 10, {"log_error": True}, ERROR),
        (ERROR, {"log_info": True}, INFO),
        (ERROR, {"log_info": True, "log_warning": True, "log_verbose_level": 0}, INFO),
        (ERROR, {"log_info": True, "log_verbose_level": 2}, DEBUG),
    ],
)
def test_a_change_is_the_threshold_that_makes_it_true(
    before: int, changes: dict[str, bool | int], after: int
) -> None:
    assert level_after(before, changes) == after
    shown = settings_of(after)
    assert all(bool(shown[name]) is bool(value) for name, value in changes.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"log_info": True, "log_warning": False},
        {"log_error": False, "log_warning": True},
        {"log_verbose_level": 1, "log_info": False},
    ],
)
def test_levels_with_a_hole_cannot_be_had(changes: dict[str, bool | int]) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be false beside the other settings"):
        level_after(INFO, changes)


def log(logger: logging.Logger, **settings: bool | int | str | None) -> dict[str, object]:
    request = pb.LogSettingsRequest()
    for name, value in settings.items():
        setting = request.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int):
            setting.uint32_param = value
        elif value is not None:
            setting.string_param = value
    raw = call("LogSettings", request.SerializeToString(), logger)
    reply = pb.LogSettingsResponse.FromString(raw)
    return {
        name: getattr(setting, setting.WhichOneof("parameter_choice") or "")
        for name, setting in reply.settings.items()
    }


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("trimtab.test")
    made.setLevel(INFO)
    yield made
    made.setLevel(logging.NOTSET)


def test_log_settings_say_what_holds_and_change_the_logger(logger: logging.Logger) -> None:
    assert log(logger) == {
        "log_file": "",
        "log_format": "default",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
    }
    assert log(logger, log_verbose_level=3)["log_verbose_level"] == 1
    assert logger.level == DEBUG
    assert log(logger, log_verbose_level=0, log_info=False)["log_info"] is False
    assert logger.level == WARNING
    assert log(logger, log_info=None)["log_info"] is True
    assert logger.level == INFO


def test_a_change_is_written_to_the_log(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    log(logger, log_error=False)
    log(logger, log_error=False)
    assert [each.getMessage() for each in caplog.records] == [
        "a client's LogSettings changed the log's level to OFF"
    ]


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"log_file": "/tmp/x"}, UnsupportedError, "log_file '/tmp/x' is not supported"),
        ({"log_format": "ISO8601"}, UnsupportedError, "log_format 'ISO8601' is not supported"),
        ({"nope": True}, InvalidRequestError, "there is no log setting 'nope'"),
        (
            {"log_info": 1},
            InvalidRequestError,
            "invalid value type for 'log_info' setting, expected bool_param.",
        ),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_changes(
    logger: logging.Logger,
    settings: dict[str, bool | int | str],
    error: type[TrimtabError],
    text: str,
) -> None:
    with pytest.raises(error) as caught:
        log(logger, log_error=False, **settings)
    assert text in str(caught.value)
    assert logger.level == INFO


def test_settings_that_are_what_they_can_be_are_taken(logger: logging.Logger) -> None:
    assert log(logger, log_file="", log_format="default")["log_file"] == ""
