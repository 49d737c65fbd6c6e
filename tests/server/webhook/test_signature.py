"""Signatures as Standard Webhooks has them, and the files of their secrets."""

from pathlib import Path

import pytest

from trimtab.server.webhook.signature import SecretError, headers, new_secret, read_keys

# The example that the specification's own libraries are tested with.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def secret_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_message_is_signed_as_the_specifications_example_is(tmp_path: Path) -> None:
    keys = read_keys(secret_file(tmp_path, SECRET + "\n"))
    found = headers(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": SIGNATURE,
    }


def test_each_secret_of_a_file_signs_so_that_one_can_follow_another(tmp_path: Path) -> None:
    path = secret_file(tmp_path, f"# old\n{SECRET}   # until May")
    new_secret(path)
    keys = read_keys(path)
    assert len(keys) == 2 and keys[0] == read_keys(secret_file(tmp_path, SECRET))[0]
    signatures = headers(keys, "a", 1, b"{}")["webhook-signature"].split(" ")
    assert [each[:3] for each in signatures] == ["v1,", "v1,"] and len({*signatures}) == 2


def test_without_a_secret_a_message_has_no_signature() -> None:
    assert set(headers([], "a", 1, b"{}")) == {"webhook-id", "webhook-timestamp"}


def test_a_new_secret_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new"
    secret = new_secret(path)
    assert path.read_text() == secret + "\n" and path.stat().st_mode & 0o777 == 0o600
    assert len(read_keys(path)[0]) == 32


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("", 0o600, "has no secret; `trimtab webhook secret "),
        (SECRET, 0o644, "has mode 644, which lets others read or change it"),
        ("\n" + SECRET.removeprefix("whsec_"), 0o600, "line 2: must begin with whsec_"),
        ("whsec_!!", 0o600, "line 1: is not base64"),
        ("whsec_c2hvcnQ=", 0o600, "line 1: has 5 bytes, a secret has 24 to 64"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_repeated(
    tmp_path: Path, text: str, mode: int, words: str
) -> None:
    path = secret_file(tmp_path, text, mode)
    with pytest.raises(SecretError) as caught:
        read_keys(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert SECRET.removeprefix("whsec_") not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="No such file"):
        read_keys(tmp_path / "none")
