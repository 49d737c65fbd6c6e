"""TraceSetting and LogSettings of the Open Inference Protocol.

There are no traces: the settings are Triton's, all at "off", and cannot be set to anything else.

Log settings are real. Python's loggers have one threshold where Triton has a switch per level, so
the settings are that threshold written as switches: `log_info` is on from INFO downwards, and a
`log_verbose_level` above 0 is DEBUG. A change that no threshold can express (`log_info` on and
`log_error` off) is refused. The reply always says what holds.
"""

import logging
from collections.abc import Callable, Mapping

from trimtab.proto import open_inference_pb2 as pb

from ..errors import InvalidRequestError, NotFoundError, UnsupportedError
from .handlers import CallContext, Handler
from .protocol import SERVICE, parse, unary

_log = logging.getLogger(__name__)

TRACE_SETTINGS: Mapping[str, str] = {
    "trace_file": "",
    "trace_level": "OFF",
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "triton",
}

_NOTHING = logging.CRITICAL + 10
_LEVELS = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_VERBOSE = "log_verbose_level"
_FIXED = {"log_file": "", "log_format": "default"}  # standard error, and one line for each record
_DEFAULTS: Mapping[str, bool | int | str] = {
    **_FIXED,
    **dict.fromkeys(_LEVELS, True),
    _VERBOSE: 0,
}
_KINDS = {
    **dict.fromkeys(_LEVELS, "bool_param"),
    _VERBOSE: "uint32_param",
    **dict.fromkeys(_FIXED, "string_param"),
}


class ServerSettingsService:
    """The handlers of the two methods."""

    def __init__(self, known: Callable[[str], bool], logger: logging.Logger) -> None:
        """`known`: whether there is a model of that name; `logger` is the one whose level it is."""
        self._known = known
        self._logger = logger

    def handlers(self) -> Mapping[str, Handler]:
        """Full method name to handler."""
        return unary(
            SERVICE, {"TraceSetting": self._trace_setting, "LogSettings": self._log_settings}
        )

    async def _trace_setting(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.TraceSettingRequest, request)
        if asked.model_name and not self._known(asked.model_name):
            raise NotFoundError(f"Request for unknown model: '{asked.model_name}' is not found")
        for name, setting in sorted(asked.settings.items()):
            if name not in TRACE_SETTINGS:
                raise InvalidRequestError(f"there is no trace setting '{name}'")
            if any(value != TRACE_SETTINGS[name] for value in setting.value):
                raise UnsupportedError(
                    f"tracing is not supported: {name} can only be '{TRACE_SETTINGS[name]}'"
                )
        reply = pb.TraceSettingResponse()
        for name, value in TRACE_SETTINGS.items():
            reply.settings[name].value.append(value)
        return reply.SerializeToString()

    async def _log_settings(self, request: bytes, _: CallContext) -> bytes:
        asked = parse(pb.LogSettingsRequest, request)
        changes: dict[str, bool | int | str] = {}
        for name, setting in sorted(asked.settings.items()):
            if name not in _KINDS:
                raise InvalidRequestError(f"there is no log setting '{name}'")
            kind = setting.WhichOneof("parameter_choice")
            if kind not in (None, _KINDS[name]):
                raise InvalidRequestError(
                    f"invalid value type for '{name}' setting, expected {_KINDS[name]}."
                )
            changes[name] = _DEFAULTS[name] if kind is None else getattr(setting, kind)
            if name in _FIXED and changes[name] != _FIXED[name]:
                raise UnsupportedError(
                    f"{name} '{changes[name]}' is not supported: the server logs to standard "
                    "error, in its own format"
                )
        before = self._logger.getEffectiveLevel()
        level = level_after(before, changes)
        if level != before:
            self._logger.setLevel(level)
            _log.warning("a client's LogSettings changed the log's level to %s", _name(level))
        reply = pb.LogSettingsResponse()
        for name, value in settings_of(level).items():
            setattr(reply.settings[name], _KINDS[name], value)
        return reply.SerializeToString()


def settings_of(level: int) -> dict[str, bool | int | str]:
    """A threshold as Triton's settings."""
    return {
        **_FIXED,
        **{name: level <= switch for name, switch in _LEVELS.items()},
        _VERBOSE: int(level <= logging.DEBUG),
    }


def level_after(level: int, changes: Mapping[str, bool | int | str]) -> int:
    """The threshold that makes the changed settings true. Raises InvalidRequestError."""
    wanted = {name: bool(changes[name]) for name in (_VERBOSE, *_LEVELS) if name in changes}
    levels = {_VERBOSE: logging.DEBUG, **_LEVELS}
    for name, on in wanted.items():  # from the lowest upwards
        if not on:
            level = max(level, _above(levels[name]))
    for name, on in wanted.items():
        if on:
            level = min(level, levels[name])
    for name, on in wanted.items():
        if (level <= levels[name]) is not on:
            raise InvalidRequestError(
                f"{name} cannot be {str(on).lower()} beside the other settings: what is logged "
                "is everything from one level upwards"
            )
    return level


def _above(level: int) -> int:
    return min([each for each in _LEVELS.values() if each > level], default=_NOTHING)


def _name(level: int) -> str:
    return "OFF" if level == _NOTHING else logging.getLevelName(level)
