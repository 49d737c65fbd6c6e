"""`trimtab webhook`: tries the webhooks of a server's settings, and makes what signs them."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ..config import ConfigError, load_server_config
from ..webhook.endpoint import Endpoint
from ..webhook.message import Message
from ..webhook.retry import Reply
from ..webhook.signature import new_secret
from .command_options import Json, print_json

webhook = typer.Typer(no_args_is_help=True, help="Try webhooks, and make what signs them.")


@webhook.callback()
def _root() -> None:
    """Try webhooks, and make what signs them."""


@webhook.command("test")
def send_test(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The server's settings file.")],
    name: Annotated[str, typer.Option(help="Only the webhook of that name.")] = "",
    as_json: Json = False,
) -> None:
    """Send a test event to each webhook of CONFIG, once, from this machine, and show the replies.

    Needs no server, and leaves one that runs alone. Ends with exit code 1 unless each of them answers
    with 2xx.

    `trimtab webhook test server.toml`
    """
    known = load_server_config(Path(), config).webhooks
    chosen = [each for each in known if name in ("", each.name)]
    if not chosen:
        there = f"; there are {', '.join(each.name for each in known)}" if known and name else ""
        raise ConfigError(f"{config}: has no webhook{f' {name!r}' if name else ''}{there}")
    results = []
    for each in chosen:
        endpoint, now_ms = Endpoint(each), time.time_ns() // 1_000_000
        message = Message.test(now_ms)
        began = time.monotonic()
        reply = endpoint.post(message, now_ms / 1000)
        took_ms = round((time.monotonic() - began) * 1000)
        result = {
            "name": each.name,
            "receiver": endpoint.shown,
            "webhook_id": message.id,
            "signed": bool(each.secret_file),
            "status": reply.status,
            "error": reply.error,
            "took_ms": took_ms,
            "reply": reply.text,
        }
        results.append(result)
        if not as_json:
            typer.echo(f"{each.name}: {endpoint.shown} {_told(reply)} ({took_ms} ms)")
    if as_json:
        print_json(results)
    if not all(200 <= int(str(each["status"])) < 300 for each in results):
        raise typer.Exit(1)


@webhook.command("secret")
def make_secret(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As `secret_file` of a webhook.")],
) -> None:
    """Make a secret, add it to FILE, and show it for the receiver.

    With several in the file each message is signed with all of them: give the receiver the new one,
    then remove the old line. A running server reads the file for each message.

    `trimtab webhook secret webhook.secret`
    """
    print(new_secret(file))


def _told(reply: Reply) -> str:
    if not reply.status:
        return f"did not answer: {reply.error}"
    text = reply.text.strip().partition("\n")[0][:200]
    return f"answered HTTP {reply.status}" + (f": {text}" if text else "")
