"""`trimtab webhook` against a real receiver, and what a running server sends."""

import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests import models
from tests.admin_port import LISTEN, serving
from tests.server.webhook.receiver import receiving
from trimtab.server.commands import cli
from trimtab.server.config import WebhookConfig

DOCS = Path(__file__).parents[3] / "docs"
runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})


def run(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def is_ours() -> Any:
    """The check that docs/webhook.md shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "webhook.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102  our own page
    return found["is_ours"]


def test_a_test_event_is_sent_to_each_webhook_and_the_replies_are_shown(tmp_path: Path) -> None:
    secret = run("webhook", "secret", tmp_path / "secret").stdout.strip()
    with receiving() as receiver:
        receiver.answers = [(200, {}), (500, {})]
        file = tmp_path / "server.toml"
        file.write_text(
            f'[[webhook]]\nurl = "{receiver.url()}"\nname = "well"\n'
            f'secret_file = "{tmp_path / "secret"}"\n'
            f'[[webhook]]\nurl = "{receiver.url("/t0ken")}"\nname = "ill"\n'
        )
        result = run("webhook", "test", file)
        well, ill = result.stdout.splitlines()
        shown = f"http://127.0.0.1:{receiver.port}/…"
        assert re.fullmatch(rf"well: {shown} answered HTTP 200: as you say \(\d+ ms\)", well)
        assert "ill" in ill and "HTTP 500" in ill and "t0ken" not in result.output
        assert result.exit_code == 1
        first, second = receiver.requests
        assert json.loads(first.body)["type"] == "webhook_test"
        assert is_ours()(first.headers, first.body, secret)
        assert not is_ours()(first.headers, first.body + b" ", secret)
        assert "webhook-signature" not in second.headers
        only = run("webhook", "test", file, "--name", "well", "--json")
        assert only.exit_code == 0
        (told,) = json.loads(only.stdout)
        assert (told["name"], told["status"], told["signed"]) == ("well", 204, True)


def test_what_cannot_be_tried_is_told_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("")
    assert run("webhook", "test", file).stderr == f"error: {file}: has no webhook\n"
    file.write_text('[webhook]\nurl = "https://a.example"\n')
    named = run("webhook", "test", file, "--name", "b")
    assert named.exit_code == 1 and "no webhook 'b'; there are a.example" in named.stderr
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "secret").chmod(0o600)
    bad = run("webhook", "secret", tmp_path / "secret")
    assert bad.exit_code == 1 and "line 1: must begin with whsec_" in bad.stderr
    assert "hunter2" not in bad.output


def test_a_server_tells_of_a_promotion_and_the_next_one_of_what_was_not_taken(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for factor in (1.0, 2.0, 3.0):
        models.publish(folder, "m", models.scaled(factor))
    run("webhook", "secret", tmp_path / "secret")
    secret = (tmp_path / "secret").read_text().strip()
    with receiving() as receiver:
        webhook = WebhookConfig(receiver.url(), secret_file=str(tmp_path / "secret"))
        settings = {"webhooks": (webhook,)}
        with serving(folder, LISTEN, **settings):
            assert run("promote", folder, "m", 2, "--reason", "better").exit_code == 0
            receiver.wait_for(1)
        receiver.answers = [(503, {})] * 3
        with serving(folder, LISTEN, **settings):
            assert run("promote", folder, "m", 3, "--reason", "better still").exit_code == 0
            receiver.wait_for(2)  # which it does not take
        with serving(folder, LISTEN, **settings):
            got = receiver.wait_for(3)
    bodies = [json.loads(each.body)["data"] for each in got]
    assert [(each["kind"], each["version"]) for each in bodies[:3]] == [
        ("promoted", 2),
        ("promoted", 3),
        ("promoted", 3),
    ]
    assert got[1].headers["webhook-id"] == got[2].headers["webhook-id"]
    assert all(is_ours()(each.headers, each.body, secret) for each in got)
