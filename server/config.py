"""Every setting of the server: its name, default, unit and limits, and how TOML becomes it.

Settings come from three places, the later ones winning: the defaults below, the server's TOML file
(`trimtab serve --config`), and options of the command line; per model the `trimtab.toml` in its
directory overrides the sections drift, labels, trigger, training and promotion. No settings dict travels
past this module and no environment variable is read elsewhere. An unknown key or a value out of
range is a `ConfigError` that names the file, the section, the key and what is allowed.
"""

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit


class ConfigError(Exception):
    """A setting that cannot be taken; the message names file, section, key and limit."""


def _setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
) -> Any:
    """`secret`: is in no log."""
    metadata = {"doc": doc, "low": low, "high": high}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class ListenConfig:
    """[server]"""

    host: str = _setting("0.0.0.0", "address of the inference port")
    port: int = _setting(8001, "inference port; 0 takes a free one", low=0, high=65535)
    name: str = _setting(
        "trimtab", "the name that ServerMetadata gives; some clients insist on triton"
    )
    admin_host: str = _setting("127.0.0.1", "address of the admin port")
    admin_port: int = _setting(8003, "admin port; 0 takes a free one", low=0, high=65535)
    admin_tokens: str = _setting(
        "", "file of the tokens that callers of the admin port need; empty: they need none"
    )
    admin_tls_cert: str = _setting(
        "", "PEM file of the admin port's certificate; empty: no TLS there"
    )
    admin_tls_key: str = _setting("", "PEM file of its private key")
    admin_tls_client_ca: str = _setting(
        "",
        "PEM file; clients of the admin port must show a certificate signed by one in it; empty: "
        "they need none",
    )
    metrics: bool = _setting(True, "answer scrapes of Prometheus, on the inference address")
    metrics_port: int = _setting(8002, "metrics port; 0 takes a free one", low=0, high=65535)
    frontend: Literal["auto", "native", "portable"] = _setting(
        "auto", "which gRPC transport answers; auto: native where it was built"
    )
    grace_s: float = _setting(10.0, "seconds that a shutdown lets requests finish", low=0)
    max_message_bytes: int = _setting(
        64 * 1024 * 1024,
        "largest message that is taken or sent, in bytes",
        low=1024,
        high=2**31 - 1,
    )
    compression: Literal["none", "gzip", "deflate"] = _setting(
        "none", "how replies are compressed for clients that accept it; requests may be in any way"
    )
    tls_cert: str = _setting("", "PEM file of the server's certificate; empty: no TLS")
    tls_key: str = _setting("", "PEM file of its private key")
    tls_client_ca: str = _setting(
        "", "PEM file; clients must show a certificate signed by one in it; empty: they need none"
    )
    keepalive_s: float = _setting(
        7200.0, "seconds of silence before a connection is tested", low=1, high=2_000_000
    )
    keepalive_timeout_s: float = _setting(
        20.0,
        "seconds that such a test waits before it closes the connection",
        low=1,
        high=2_000_000,
    )
    max_concurrent_streams: int = _setting(
        1024, "calls at once on one connection; 0: any number", low=0, high=2**31 - 1
    )
    max_in_flight: int = _setting(
        0, "requests under way at once, further ones are refused; 0: any number", low=0
    )
    max_in_flight_bytes: int = _setting(
        1024 * 1024 * 1024, "bytes of requests under way at once; 0: any number", low=0
    )
    output_contents: Literal["raw", "mirror"] = _setting(
        "raw", "contents of replies; mirror: typed where the request's are"
    )
    watch: bool = _setting(True, "follow changes of the model directory while serving")
    model_control: bool = _setting(
        False, "let clients of the inference port load and unload models"
    )


@dataclass(frozen=True)
class BatchingConfig:
    """[batching]"""

    max_batch_rows: int = _setting(1024, "rows that one run of the model takes at most", low=1)
    max_request_rows: int = _setting(65536, "rows that one request may have", low=1)
    max_string_bytes: int = _setting(
        16 * 1024 * 1024, "bytes that one string of a request may have", low=1, high=2**32 - 1
    )
    max_queue_rows: int = _setting(65536, "rows that may wait per version", low=1)
    linger_ms: float = _setting(
        0.0, "how long an idle executor waits for more rows before it runs", low=0
    )


@dataclass(frozen=True)
class TrafficConfig:
    """[traffic]: the log of predictions and labels that the trainer learns from."""

    enabled: bool = _setting(True, "write the log; without it nothing can be retrained")
    flush_rows: int = _setting(4096, "rows gathered into one frame", low=1)
    flush_ms: int = _setting(1000, "age at which a smaller frame is written, in ms", low=1)
    fsync_ms: int = _setting(1000, "how often the file is synced, in ms; 0: every frame", low=0)
    queue_rows: int = _setting(262_144, "rows that may wait to be written; more are dropped", low=1)
    segment_rows: int = _setting(500_000, "rows after which a new file begins", low=1)
    max_rows_per_s: int = _setting(
        10_000,
        "rows that are logged per second on average, further ones are dropped; 0: all",
        low=0,
    )
    keep_days: int = _setting(90, "days of event time that the log keeps", low=1)


@dataclass(frozen=True)
class RegistryConfig:
    """[registry]: what the server does with versions, for every model alike."""

    keep: int = _setting(
        0,
        "newest versions that are kept; older ones are removed unless they serve, are pinned or may "
        "be rolled back to; 0: all",
        low=0,
    )
    signing_key: str = _setting(
        "", "PEM file of the key that versions trained here are signed with; empty: they are not"
    )
    require_signature: bool = _setting(False, "load versions only that are signed by a trusted key")
    trusted_keys: tuple[str, ...] = _setting((), "PEM files of the public keys that are trusted")


ALL_EVENTS = "all"
_EVENTS = (  # what a person wants to hear of
    *("approval_wanted", "data_broken", "data_quality", "drift", "held", "load_failed"),
    *("log_failed", "promoted", "quality", "refused", "rolled_back", "training_failed"),
)


@dataclass(frozen=True)
class WebhookConfig:
    """[webhook]: who is told of events over HTTP; `[[webhook]]` for each, if there are several."""

    url: str = _setting(
        "", "where events are sent, https:// or http://; empty: nowhere", secret=True
    )
    name: str = _setting(
        "", "what it is called in metrics, in the log and in its file; empty: the URL's host"
    )
    secret_file: str = _setting(
        "", "file of the secrets that messages are signed with; empty: they are not signed"
    )
    events: tuple[str, ...] = _setting(_EVENTS, "kinds of events that are sent; all: every kind")
    timeout_s: float = _setting(10.0, "seconds that one attempt may take", low=0.1, high=300)
    max_age_s: float = _setting(
        259_200.0, "seconds after which an event that nobody took is given up", low=1, high=1e9
    )
    max_mb: int = _setting(
        16, "MiB of events that may wait; the oldest are dropped", low=1, high=1024
    )

    def __post_init__(self) -> None:
        if not self.url:
            return
        try:
            url = urlsplit(self.url)
            known = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            known = False
        if not known or not self.url.isprintable() or " " in self.url or not self.url.isascii():
            # The URL may hold what is secret, and is not repeated.
            raise ConfigError(
                "[webhook] url: must be https://HOST[:PORT][/PATH] or http://…, in ASCII"
            )
        name = self.name or (url.hostname or "").replace(":", "-").strip("-")
        if not _WEBHOOK_NAME.fullmatch(name):
            raise ConfigError(
                f"[webhook] name = {name!r}: must be 1 to 64 letters, digits and . _ -, a letter or "
                "digit first"
            )
        object.__setattr__(self, "name", name)


@dataclass(frozen=True)
class DriftConfig:
    """[drift]"""

    enabled: bool = _setting(True, "watch for drift")
    window_rows: int = _setting(10_000, "rows in the sliding window at most", low=10)
    window_s: float = _setting(
        0.0, "seconds that the sliding window spans at most; 0: rows alone", low=0, high=1e9
    )
    panes: int = _setting(
        10, "panes of the window; it is judged as each one ends", low=1, high=1000
    )
    judge_every_s: float = _setting(
        0.5, "seconds between two judgements at least, however fast panes end", low=0, high=3600
    )
    min_rows: int = _setting(2_000, "rows in the window before it is judged at all", low=1)
    false_alarm_rows: int = _setting(
        10_000_000, "rows between two false alarms on average, at least", low=1
    )
    psi: float = _setting(
        0.2, "PSI from which a feature has drifted: what its lower bound must reach", low=0
    )
    ks: float = _setting(
        0.2, "lower KS bound of one feature from which it has drifted", low=0, high=1
    )
    warning_ratio: float = _setting(
        0.5, "share of a threshold from which a feature is in warning", low=0, high=1
    )
    missing_rate: float = _setting(
        0.2, "rise of the missing rate that is a data-quality alarm", low=0, high=1
    )
    unseen_rate: float = _setting(
        0.2, "share of unseen categories that is a data-quality alarm", low=0, high=1
    )
    far_rate: float = _setting(
        0.1,
        "share of values far outside of the reference's range that is a data-quality alarm; 0: none",
        low=0,
        high=1,
    )
    deflate: bool = _setting(
        True, "count rows for fewer where neighbouring panes differ more than chance lets them"
    )
    rows_per_request: int = _setting(
        0, "rows of one request that are counted at most, evenly chosen; 0: all", low=0
    )
    max_rows_per_s: int = _setting(
        100_000,
        "rows that are counted per second, evenly chosen among those that come; 0: all",
        low=0,
    )
    hysteresis_panes: int = _setting(2, "panes in a row that change the state", low=1)
    bootstrap_rows: int = _setting(
        10_000, "first live rows that become the reference of a model without one", low=100
    )


@dataclass(frozen=True)
class LabelsConfig:
    """[labels]: how wrong the answers are, as labels tell."""

    watch: bool = _setting(True, "hold labels against what was answered")
    remember_rows: int = _setting(
        500_000, "answered rows that wait for their labels; older ones are forgotten", low=1_000,
        high=2**30,
    )  # fmt: skip
    remember_mb: int = _setting(64, "MiB that these may take", low=1)
    remember_share: float = _setting(
        1.0, "share of the rows that is remembered, chosen by their ids", low=0.0001, high=1
    )
    window_rows: int = _setting(5_000, "labelled rows in the sliding window", low=100)
    panes: int = _setting(
        10, "panes of the window; it is judged as each one ends", low=1, high=1000
    )
    min_rows: int = _setting(1_000, "labelled rows in the window before it is judged", low=30)
    min_loss_increase: float = _setting(
        0.1, "share of the reference's mean loss by which it must have risen", low=0
    )
    false_alarm_rows: int = _setting(
        10_000_000, "labelled rows between two false alarms on average, at least", low=1
    )
    deflate: bool = _setting(
        True, "count rows for fewer where neighbouring panes differ more than chance lets them"
    )
    hysteresis_panes: int = _setting(2, "panes in a row that change the state", low=1)
    drop_dir: str = _setting(
        "labels_in",
        "directory in the model's own from which files of labels are taken, where somebody has made "
        "it; empty: none",
    )

    def __post_init__(self) -> None:
        parts = self.drop_dir.split("/")
        if self.drop_dir and any(
            not part or part.startswith(".") or part.isdecimal() for part in parts
        ):
            raise ConfigError(
                f"[labels] drop_dir = {self.drop_dir!r}: must be a path inside of the model's "
                "directory, without hidden names and none like a version's"
            )


@dataclass(frozen=True)
class TriggerConfig:
    """[trigger]: when a training starts by itself."""

    on_drift: bool = _setting(True, "drift starts a training")
    on_quality: bool = _setting(True, "labels that show a loss of quality start a training")
    every_s: float = _setting(0.0, "seconds between scheduled trainings; 0: none", low=0)
    min_labels: int = _setting(2_000, "labels that must have come since the last training", low=1)
    label_maturity_s: float = _setting(
        0.0,
        "seconds after a prediction before its label counts as final; younger rows are neither "
        "counted nor trained on; 0: at once",
        low=0,
        high=3650 * 86_400,
    )
    cooldown_s: float = _setting(86_400.0, "seconds between trainings at least", low=0)
    max_per_day: int = _setting(24, "trainings per day at most", low=1)
    max_failures: int = _setting(3, "failed trainings in a row before automatic ones stop", low=1)
    dry_run: bool = _setting(
        False, "only record what would have been trained; operators' requests are trained"
    )


@dataclass(frozen=True)
class TrainingConfig:
    """[training]: the trainer's process."""

    timeout_s: float = _setting(3600.0, "seconds after which a training is killed", low=1)
    memory_mb: int = _setting(
        0, "address space of the trainer in MiB, at least 1400; 0: no limit", low=0
    )
    nice: int = _setting(10, "added to the trainer's niceness", low=0, high=19)
    threads: int = _setting(1, "threads that the trainer may use", low=1)


@dataclass(frozen=True)
class PromotionConfig:
    """[promotion]"""

    policy: Literal["auto", "manual", "shadow", "canary"] = _setting(
        "auto",
        "what becomes of a version that passed every gate; auto: champion at once; shadow, canary: "
        "after it was compared with the champion; manual: a person promotes it",
    )
    approval: bool = _setting(
        False, "a version that passed its gates waits until somebody approves it (trimtab approve)"
    )
    approval_s: float = _setting(
        604_800.0, "seconds after which a version that nobody approved is refused", low=1, high=1e9
    )
    shadow_rows: int = _setting(5_000, "rows that a shadow compares", low=1, high=200_000)
    shadow_s: float = _setting(
        86_400.0, "seconds after which a shadow ends at the latest", low=1, high=1e9
    )
    canary_steps: tuple[float, ...] = _setting(
        (0.01, 0.1, 0.5), "shares of the requests that a canary answers, one after another"
    )
    canary_rows: int = _setting(
        500, "rows that the new version answers in each step at least", low=1, high=200_000
    )
    canary_s: float = _setting(
        86_400.0, "seconds after which a step ends at the latest", low=1, high=1e9
    )
    bake: bool = _setting(
        True,
        "after a promotion compare the new champion with the one before, and roll back if worse",
    )
    bake_rows: int = _setting(5_000, "rows that a bake compares", low=1, high=200_000)
    bake_s: float = _setting(
        604_800.0, "seconds after which a bake ends at the latest", low=1, high=1e9
    )
    undo_manual: bool = _setting(
        False, "a failed bake also rolls back what a person promoted; false: it only says so"
    )
    on_inconclusive: Literal["hold", "promote", "rollback"] = _setting(
        "hold",
        "what follows where the time was up before enough was known; in a bake hold and promote let "
        "the new champion stay",
    )
    min_rows: int = _setting(500, "rows that must be compared for a verdict at the deadline", low=1)
    labels: Literal["if_any", "required", "ignored"] = _setting(
        "if_any",
        "whether a verdict waits for labels; if_any: where the model has ever got one, and not "
        "beyond the deadline; required: without them it is inconclusive",
    )
    label_rows: int = _setting(500, "labelled rows from which they are judged", low=30)
    max_error_rise: float = _setting(
        0.001, "share of the requests that the new version alone may fail on", low=0, high=1
    )
    max_latency_ratio: float = _setting(
        2.0, "compute time per run that the new version may take, in the other's", low=1
    )
    max_latency_ms: float = _setting(
        1.0, "ms more per run that it may take, whatever the ratio", low=0
    )
    max_psi: float = _setting(
        3.0,
        "PSI that the two versions' predictions for the same rows may have, unless labels show that "
        "the new one is no worse; 0: any",
        low=0,
    )
    min_agreement: float = _setting(
        0.0, "share of the rows on which they must agree; 0: any", low=0, high=1
    )
    agreement_tolerance: float = _setting(
        0.1, "how far apart two numbers still agree, in standard deviations of the reference", low=0
    )
    max_loss_rise: float = _setting(
        0.05,
        "share of the other's loss on labelled rows by which the new one's may be higher",
        low=0,
    )
    mirror_cpu: float = _setting(
        0.05, "share of one core that comparing takes at most", low=0.001, high=1
    )
    mirror_rows: int = _setting(
        65_536, "rows that may wait to be compared; further ones are not compared", low=1
    )
    mirror_mb: int = _setting(64, "MiB that they may take", low=1)

    def __post_init__(self) -> None:
        steps = self.canary_steps
        if not steps or sorted({*steps}) != [*steps] or not (steps[0] > 0 and steps[-1] < 1):
            raise ConfigError(
                f"[promotion] canary_steps = {[*steps]}: must ascend, from above 0 to below 1"
            )


@dataclass(frozen=True)
class ServingConfig:
    """[serving] (per model)"""

    versions: tuple[int, ...] = _setting(
        (), "versions kept loaded beside the champion and the previous one"
    )


@dataclass(frozen=True)
class ModelPolicy:
    """What holds for one model: the server's defaults, overridden by its trimtab.toml."""

    drift: DriftConfig = field(default_factory=DriftConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    trigger: TriggerConfig = field(default_factory=TriggerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)


@dataclass(frozen=True)
class ServerConfig:
    """Everything that a server is started with."""

    models_dir: Path
    server: ListenConfig = field(default_factory=ListenConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    webhooks: tuple[WebhookConfig, ...] = ()
    policy: ModelPolicy = field(default_factory=ModelPolicy)


_SERVER_SECTIONS: dict[str, type] = {
    "server": ListenConfig,
    "batching": BatchingConfig,
    "traffic": TrafficConfig,
    "registry": RegistryConfig,
}
_POLICY_SECTIONS: dict[str, type] = {
    "drift": DriftConfig,
    "labels": LabelsConfig,
    "trigger": TriggerConfig,
    "training": TrainingConfig,
    "promotion": PromotionConfig,
}
_MODEL_SECTIONS: dict[str, type] = {**_POLICY_SECTIONS, "serving": ServingConfig}
_WEBHOOK = "webhook"  # a section, or a list of them
_WEBHOOK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RECIPE = "recipe"  # the trainer's part of trimtab.toml; the trainer checks it

_T = TypeVar("_T")


def load_server_config(
    models_dir: Path, file: Path | None = None, options: Mapping[str, Any] | None = None
) -> ServerConfig:
    """The settings of a server; `options` are dotted keys (`server.port`), None values are skipped.

    Raises ConfigError.
    """
    known = {**_SERVER_SECTIONS, **_POLICY_SECTIONS}
    tables = _read(file, known, also=(_WEBHOOK,)) if file else {}
    for dotted, value in (options or {}).items():
        if value is not None:
            section, key = dotted.split(".")
            if section not in (*known, _WEBHOOK):
                raise ConfigError(f"--set {dotted}: no such section; known are {', '.join(known)}")
            table = tables.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {dotted}: {file} has a list of [[{section}]]")
            table[key] = value
    origin = str(file) if file else "command line"
    webhooks = _webhooks(tables.pop(_WEBHOOK, []), origin)
    built: dict[str, Any] = {
        name: _build(kind, tables.get(name, {}), origin, name) for name, kind in known.items()
    }
    policy = ModelPolicy(**{name: built.pop(name) for name in _POLICY_SECTIONS})
    return ServerConfig(models_dir=models_dir, policy=policy, webhooks=webhooks, **built)


def _webhooks(given: Any, origin: str) -> tuple[WebhookConfig, ...]:
    """Of a section, or of a list of them. Raises ConfigError."""
    built: list[WebhookConfig] = []
    for table in given if isinstance(given, list) else [given]:
        if not isinstance(table, dict):
            raise ConfigError(f"{origin}: {_WEBHOOK} must be a section, [{_WEBHOOK}]")
        if "url" not in table:
            raise ConfigError(f"{origin}: [{_WEBHOOK}] has no url")
        webhook = _build(WebhookConfig, table, origin, _WEBHOOK)
        if webhook.url and webhook.name in (each.name for each in built):
            raise ConfigError(
                f"{origin}: [[{_WEBHOOK}]]: two are called {webhook.name}; give each a name"
            )
        built += [webhook] * bool(webhook.url)
    return tuple(built)


def load_model_policy(file: Path, defaults: ModelPolicy) -> ModelPolicy:
    """The policy of one model: `defaults` overridden by its trimtab.toml, which may be absent.

    Raises ConfigError.
    """
    if not file.exists():
        return defaults
    tables = _read(file, _MODEL_SECTIONS, also=(_RECIPE,))
    changed = {
        name: _build(kind, tables[name], str(file), name, base=getattr(defaults, name))
        for name, kind in _MODEL_SECTIONS.items()
        if name in tables
    }
    return dataclasses.replace(defaults, **changed)


def describe(kind: type) -> list[tuple[str, str, Any, str]]:
    """(key, type, default, meaning) of every setting in a section, for help texts and docs."""
    hints = typing.get_type_hints(kind)
    return [
        (item.name, _type_name(hints[item.name]), item.default, item.metadata["doc"])
        for item in dataclasses.fields(kind)
    ]


def sections() -> dict[str, type]:
    """Every section by name, in the order of the docs."""
    return {**_SERVER_SECTIONS, _WEBHOOK: WebhookConfig, **_MODEL_SECTIONS}


def _read(
    file: Path, known: Mapping[str, type], also: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    for name, table in tables.items():
        if name not in known and name not in also:
            raise ConfigError(f"{file}: unknown section [{name}]{_nearest(name, [*known, *also])}")
        if not isinstance(table, dict) and name != _WEBHOOK:
            raise ConfigError(f"{file}: {name} must be a section, [{name}]")
    return tables


def _build(
    kind: type[_T], table: Mapping[str, Any], origin: str, section: str, base: _T | None = None
) -> _T:
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]  # all are dataclasses
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{origin}: [{section}] {key}"
        if key not in fields:
            raise ConfigError(f"{where}: unknown setting{_nearest(key, fields)}")
        value = _convert(value, hints[key], where)
        metadata = fields[key].metadata
        if metadata["low"] is not None and value < metadata["low"]:
            raise ConfigError(f"{where} = {value}: must be at least {metadata['low']}")
        if metadata["high"] is not None and value > metadata["high"]:
            raise ConfigError(f"{where} = {value}: must be at most {metadata['high']}")
        values[key] = value
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)  # type: ignore[type-var]  # a dataclass, as all
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{where} = {value!r}: must be one of {', '.join(allowed)}")
        return value
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {value!r}: must be {_type_name(hint)}")
        return tuple(_convert(item, inner, where) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or (hint is float and math.isnan(value)):
        raise ConfigError(f"{where} = {value!r}: must be {_type_name(hint)}")
    return value


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " | ".join(typing.get_args(hint))
    if isinstance(hint, types.GenericAlias):
        return f"a list, each item {_type_name(typing.get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names[hint]


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"
