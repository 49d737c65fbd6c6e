"""[webhook] and [[webhook]] in the server's settings."""

from pathlib import Path

import pytest

from trimtab.server.config import ConfigError, ServerConfig, load_server_config


def load(folder: Path, text: str, options: dict[str, object] | None = None) -> ServerConfig:
    file = folder / "server.toml"
    file.write_text(text)
    return load_server_config(folder, file, options)


def test_a_section_is_one_webhook_and_a_list_several(tmp_path: Path) -> None:
    (one,) = load(tmp_path, '[webhook]\nurl = "https://a.example:9/x"\n').webhooks
    assert (one.name, one.timeout_s, "drift" in one.events) == ("a.example", 10.0, True)
    several = '[[webhook]]\nurl = "https://a.example"\nevents = ["all"]\n'
    several += '[[webhook]]\nurl = "https://a.example"\nname = "second"\n'
    assert [each.name for each in load(tmp_path, several).webhooks] == ["a.example", "second"]
    assert load(tmp_path, "").webhooks == ()


def test_an_option_sets_the_only_one_and_an_empty_url_is_none(tmp_path: Path) -> None:
    option: dict[str, object] = {"webhook.url": "http://[::1]:9/x"}
    (one,) = load(tmp_path, "", option).webhooks
    assert one.name == "1", "what may be in a file's name"
    assert load(tmp_path, '[webhook]\nurl = ""\n').webhooks == ()
    listed = '[[webhook]]\nurl = "https://a.example"\n'
    with pytest.raises(ConfigError, match=r"has a list of \[\[webhook\]\]"):
        load(tmp_path, listed, option)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[webhook]\nevents = ['drift']", r"\[webhook\] has no url"),
        ("[webhook]\nurl = 'ftp://a/b'", r"url: must be https://HOST"),
        ("[webhook]\nurl = 'https:///b'", r"url: must be https://HOST"),
        ("[webhook]\nurl = 'https://a:70000'", r"url: must be https://HOST"),
        ("[webhook]\nurl = 'https://a/b c'", r"url: must be https://HOST"),
        ("[webhook]\nurl = 'https://a'\nname = 'a/b'", r"name = 'a/b': must be 1 to 64 letters"),
        ("[webhook]\nurl = 'https://a'\ntimeout = 1", r"timeout: unknown setting; did you mean"),
        ("[webhook]\nurl = 'https://a'\ntimeout_s = 0", r"timeout_s = 0.0: must be at least 0.1"),
        ("[[webhook]]\nurl = 'https://a'\n" * 2, r"two are called a; give each a name"),
        ("webhook = 3", r"webhook must be a section"),
    ],
)
def test_a_webhook_that_cannot_be_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_a_url_is_in_no_message_and_no_text_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[webhook]\nurl = 'htps://ann:s3cret@a/b'")
    assert "s3cret" not in str(caught.value)
    config = load(tmp_path, "[webhook]\nurl = 'https://ann:s3cret@a/b'")
    assert "s3cret" not in repr(config) and "name='a'" in repr(config)
