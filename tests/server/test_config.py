"""Settings: what is taken, what is refused, and in which words."""

import dataclasses
from pathlib import Path

import pytest

from trimtab.server.config import (
    ConfigError,
    DriftConfig,
    ModelPolicy,
    describe,
    load_model_policy,
    load_server_config,
    sections,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "server.toml", "[server]\nport = 9000\nadmin_port = 9001\n")

    config = load_server_config(tmp_path, file, {"server.port": 0, "server.host": None})

    assert (config.server.port, config.server.admin_port) == (0, 9001)
    assert config.server.host == "0.0.0.0"


def test_a_models_file_overrides_only_what_it_names(tmp_path: Path) -> None:
    defaults = ModelPolicy(drift=DriftConfig(psi=0.3, window_rows=500))
    file = write(
        tmp_path / "trimtab.toml",
        "[recipe]\nanything = 1\n[drift]\npsi = 1\n[serving]\nversions = [1, 2]\n",
    )

    policy = load_model_policy(file, defaults)

    assert policy.drift == dataclasses.replace(defaults.drift, psi=1.0)
    assert policy.serving.versions == (1, 2)
    assert policy.trigger == defaults.trigger


def test_an_absent_model_file_leaves_the_defaults(tmp_path: Path) -> None:
    defaults = ModelPolicy()
    assert load_model_policy(tmp_path / "trimtab.toml", defaults) is defaults


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[drift]\npsy = 1", r"\[drift\] psy: unknown setting; did you mean psi\?"),
        ("[drfit]\npsi = 1", r"unknown section \[drfit\]; did you mean drift\?"),
        ("[drift]\nks = 2", r"\[drift\] ks = 2.0: must be at most 1"),
        ("[drift]\npanes = 0", r"\[drift\] panes = 0: must be at least 1"),
        ("[drift]\npanes = 1.5", r"\[drift\] panes = 1.5: must be a whole number"),
        (
            "[promotion]\ncanary_steps = [0.5, 0.1]",
            r"trimtab.toml: \[promotion\] canary_steps = \[0.5, 0.1\]: must ascend",
        ),
        ("[promotion]\ncanary_steps = [0.5, 1]", r"from above 0 to below 1"),
        ("[promotion]\ncanary_steps = []", r"canary_steps = \[\]: must ascend"),
        ("[drift]\npanes = true", r"\[drift\] panes = True: must be a whole number"),
        ("[drift]\npsi = nan", r"\[drift\] psi = nan: must be a number"),
        ("[promotion]\npolicy = 'yes'", r"policy = 'yes': must be one of auto, manual"),
        ("[serving]\nversions = ['a']", r"versions = 'a': must be a whole number"),
        ("[serving]\nversions = 3", r"versions = 3: must be a list, each item a whole number"),
        ("drift = 3", "drift must be a section"),
        ("[drift", "not TOML"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "trimtab.toml", text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model_policy(file, ModelPolicy())
    assert str(file) in str(caught.value)


def test_an_option_can_set_every_section_but_a_models_own(tmp_path: Path) -> None:
    for name, kind in sections().items():
        key, _type, default, _doc = describe(kind)[0]
        if name == "serving":
            with pytest.raises(ConfigError, match=r"--set serving.versions: no such section"):
                load_server_config(tmp_path, options={f"{name}.{key}": default})
        else:
            load_server_config(tmp_path, options={f"{name}.{key}": default})


def test_an_unreadable_server_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_server_config(tmp_path, tmp_path / "absent.toml")


def test_every_setting_has_a_meaning_and_a_default() -> None:
    for kind in sections().values():
        for key, type_name, _default, doc in describe(kind):
            assert doc, key
            assert type_name, key


def test_the_reference_in_docs_lists_every_setting_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    for name, kind in sections().items():
        section = text.split(f"## [{name}]")[1].split("\n## ")[0]
        rows = {
            line.split("|")[1].strip(" `"): line for line in section.splitlines() if "|" in line
        }
        for key, _type, default, doc in describe(kind):
            shown = (
                str(default).lower()
                if isinstance(default, bool | str)
                else list(default)
                if isinstance(default, tuple)
                else default
            )
            assert f"`{shown}`" in rows[key].replace('"', ""), key
            assert doc in rows[key], key
