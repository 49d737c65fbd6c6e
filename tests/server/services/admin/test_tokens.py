"""The file of tokens: who is let in, and what happens when it changes under a running server."""

import hashlib
import os
from pathlib import Path

import pytest

from trimtab.server.errors import UnavailableError
from trimtab.server.services.admin.tokens import TokensError, TokensFile, new_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def line(name: str, role: str, token: str) -> str:
    return f"{name} {role} {hashlib.sha256(token.encode()).hexdigest()}\n"


def test_a_token_is_made_once_and_its_hash_is_what_is_kept(path: Path) -> None:
    ann, bob = new_token(path, "ann", "operator"), new_token(path, "bob@site", "viewer")
    assert ann != bob and len(ann) > 40
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_text()
    assert content == line("ann", "operator", ann) + line("bob@site", "viewer", bob)
    tokens = TokensFile(path)
    for token, name, role in ((ann, "ann", "operator"), (bob, "bob@site", "viewer")):
        found = tokens.find(token)
        assert found is not None and (found.name, found.role) == (name, role)
    for wrong in ("", ann[:-1], ann + "x", ann.upper(), content.split()[2], "\udcff"):
        assert tokens.find(wrong) is None
    assert ann not in repr(tokens) and content.split()[2] not in repr(tokens)


def test_a_line_that_comes_or_goes_counts_from_the_next_call_on(path: Path) -> None:
    first = new_token(path, "ann", "operator")
    tokens = TokensFile(path)
    second = new_token(path, "ann", "viewer")  # a name may have two while one replaces the other
    assert tokens.find(first) is not None and tokens.find(second) is not None
    path.write_text(line("ann", "viewer", second))
    assert tokens.find(first) is None
    # Of the same size and within a tick of the clock.
    path.write_text(line("ann", "viewer", first))
    assert tokens.find(second) is None and tokens.find(first) is not None
    os.utime(path, (1, 1))
    assert tokens.find(first) is not None
    assert tokens.find(first) is not None
    replaced = path.with_suffix(".new")
    replaced.write_text("# nobody any more\n")
    replaced.chmod(0o600)
    replaced.replace(path)
    assert tokens.find(first) is None


def test_a_file_that_cannot_be_used_lets_nobody_in_until_it_can(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = new_token(path, "ann", "operator")
    tokens = TokensFile(path)
    good = path.read_text()
    for broken in (good + "bob viewer\n", good + "bob boss " + "0" * 64, "\xff"):
        path.write_bytes(broken.encode("latin-1"))
        for _ in range(2):
            with pytest.raises(UnavailableError, match="cannot be read at the moment"):
                tokens.find(token)
    path.unlink()
    with pytest.raises(UnavailableError):
        tokens.find(token)
    path.write_text(good)
    path.chmod(0o644)
    with pytest.raises(UnavailableError):
        tokens.find(token)
    path.chmod(0o640)  # a group may read it: a service's, say
    assert tokens.find(token) is not None
    told = [record.message for record in caplog.records]
    assert len([text for text in told if "nobody is let in" in text]) == 5, "each problem once"
    assert told[-1] == f"{path}: can be used again"
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has no token; `trimtab token new NAME --file .*tokens`"),
        ("# a comment\n\n", "has no token"),
        ("ann operator\n", "line 1: has 2 words"),
        ("\nann boss " + "0" * 64, "line 2: role 'boss' must be one of viewer, operator"),
        ("ann viewer secret\n", "line 1: the third word must be a SHA-256"),
        ("ann viewer " + "A" * 64, "64 lower-case"),
        ("../x viewer " + "0" * 64, "line 1: '../x' cannot be a name"),
    ],
)
def test_a_line_that_is_none_is_named(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(TokensError, match=message) as caught:
        TokensFile(path)
    assert str(path) in str(caught.value)
    assert "secret" not in str(caught.value), "it may have been a token"


def test_a_file_that_others_may_read_or_change_is_refused(path: Path) -> None:
    new_token(path, "ann", "operator")
    for mode in (0o604, 0o602, 0o620):
        path.chmod(mode)
        with pytest.raises(TokensError, match=f"has mode {mode:o}, .*chmod 600 {path}"):
            TokensFile(path)
        with pytest.raises(TokensError, match="chmod 600"):
            new_token(path, "bob", "viewer")
    assert len(path.read_text().splitlines()) == 1


def test_a_token_is_not_added_to_what_is_no_tokens_file(path: Path) -> None:
    path.write_text("[server]\nport = 1\n")
    path.chmod(0o600)
    with pytest.raises(TokensError, match="line 1: has 1 words"):
        new_token(path, "ann", "operator")
    with pytest.raises(TokensError, match="cannot be a name"):
        new_token(path.with_name("other"), "an n", "operator")
    assert not path.with_name("other").exists()
    path.write_text(line("ann", "viewer", "x").rstrip("\n"))  # an editor left the newline away
    token = new_token(path, "bob", "viewer")
    found = TokensFile(path).find(token)
    assert found is not None and found.name == "bob"
