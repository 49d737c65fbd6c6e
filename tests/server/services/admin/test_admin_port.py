"""A server's admin port as its clients find it: TLS, certificates, tokens, and the actor they make."""

import json
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests import models
from tests.admin_port import LISTEN, serving
from tests.certificates import Files, make_certificates
from trimtab.proto import admin_pb2 as pb
from trimtab.registry.directory import Registry
from trimtab.server.app import Application
from trimtab.server.commands.admin_client import (
    AdminClient,
    AdminError,
    Connection,
    NotRunningError,
    find_server,
)
from trimtab.server.config import ConfigError, ServerConfig
from trimtab.server.services.admin.tokens import new_token


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for factor in (1.0, 2.0):
        models.publish(folder, "m", models.scaled(factor))
    return folder


def last_actor(models_dir: Path, kind: str) -> str:
    entries = Registry(models_dir).model("m").history().entries
    return next(each.actor for each in reversed(entries) if each.kind == kind)


def test_a_token_says_who_may_what_and_who_it_was(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    viewer, operator = new_token(path, "vera", "viewer"), new_token(path, "otto", "operator")
    with serving(models_dir, replace(LISTEN, admin_tokens=str(path))) as listening:
        assert [each.model_name for each in listening.list_versions().models] == ["m"]

        def client(token: str | None) -> AdminClient:
            return AdminClient(listening.admin, connection=Connection(token))

        with client(viewer) as asks:
            assert asks.list_versions().models[0].champion == 1
            assert [each.verdict for each in asks.verify()] == ["ok"]
            with pytest.raises(AdminError, match="vera has the role viewer: Promote") as caught:
                asks.promote("m", 2, actor="x", reason="")
            assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
        for token in (None, operator + "x"):
            with client(token) as stranger:
                with pytest.raises(AdminError, match="token") as caught:
                    stranger.list_versions()
                assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(AdminError, match="token") as caught:
                    next(stranger.watch_events())
                assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
        with client(operator) as changes:
            assert changes.promote("m", 2, actor="the chief", reason="x").champion == 2
            assert last_actor(models_dir, "promoted") == "otto"
            with pytest.raises(AdminError, match="revision 2, not at the expected 1") as caught:
                changes.rollback("m", actor="", reason="", expected_revision=1)
            assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
            changes.change(pb.FreezeRequest(model_name="m", actor="the chief", reason="audit"))
            assert last_actor(models_dir, "frozen") == "otto"
            with pytest.raises(AdminError) as caught:
                changes.change(pb.PinRequest(model_name="m", version=9))
            assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_health_can_be_asked_without_a_token(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    new_token(path, "vera", "viewer")
    with (
        serving(models_dir, replace(LISTEN, admin_tokens=str(path))) as listening,
        grpc.insecure_channel(listening.admin) as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        reply = check(b"", timeout=10)
        assert reply == b"\x08\x01"


def test_a_clients_certificate_is_needed_and_names_the_actor(
    models_dir: Path, files: Files
) -> None:
    listen = replace(
        LISTEN,
        admin_tls_cert=files.path("server.pem"),
        admin_tls_key=files.path("server.key"),
        admin_tls_client_ca=files.path("ca.pem"),
    )
    ca = Path(files.path("ca.pem"))
    known = Connection(
        tls_ca=ca,
        tls_cert=Path(files.path("client.pem")),
        tls_key=Path(files.path("client.key")),
    )
    stranger = replace(
        known,
        tls_cert=Path(files.path("stranger.pem")),
        tls_key=Path(files.path("stranger.key")),
    )
    with serving(models_dir, listen):
        assert json.loads((models_dir / ".trimtab" / "server.json").read_text())["admin_tls"]
        found = find_server(models_dir)
        assert found.tls
        with AdminClient(found.address, connection=known) as client:
            client.promote("m", 2, actor="the chief", reason="x")
            assert last_actor(models_dir, "promoted") == "client"
        wrong_ca = Connection(tls_ca=Path(files.path("other_ca.pem")))
        for connection in (Connection(tls_ca=ca), stranger, wrong_ca, Connection()):
            with AdminClient(found.address, connection=connection) as client:
                with pytest.raises(AdminError) as caught:
                    client.list_versions()
                assert not isinstance(caught.value, NotRunningError), "there is one"
                assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_tls_alone_hides_the_token_and_checks_the_servers_name(
    models_dir: Path, tmp_path: Path, files: Files
) -> None:
    path = tmp_path / "tokens"
    token = new_token(path, "vera", "viewer")
    listen = replace(
        LISTEN,
        admin_tokens=str(path),
        admin_tls_cert=files.path("server.pem"),
        admin_tls_key=files.path("server.key"),
    )
    connection = Connection(token, tls_ca=Path(files.path("ca.pem")))
    with serving(models_dir, listen) as listening:
        for name in (None, "localhost"):
            with AdminClient(
                listening.admin, connection=replace(connection, tls_name=name)
            ) as asks:
                assert asks.list_versions().models
        with (
            AdminClient(listening.admin, connection=replace(connection, tls_name="box")) as asks,
            pytest.raises(AdminError, match=r"cannot connect to .*--tls-name"),
        ):
            asks.list_versions()
    with pytest.raises(AdminError, match=r"absent\.pem: cannot be read"):
        AdminClient("127.0.0.1:1", connection=Connection(tls_ca=tmp_path / "absent.pem"))


def test_a_server_does_not_start_where_anybody_could_be_its_operator(models_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[server\] admin_host = 0\.0\.0\.0"):
        Application(ServerConfig(models_dir, server=replace(LISTEN, admin_host="0.0.0.0")))
    assert not (models_dir / ".trimtab" / "server.json").exists()


def test_a_certificate_that_cannot_be_used_names_the_admin_ports_setting(
    models_dir: Path, files: Files
) -> None:
    for wrong, message in (
        ({"admin_tls_cert": files.path("server.pem")}, "admin_tls_cert = .* needs admin_tls_key"),
        ({"admin_tls_client_ca": files.path("ca.pem")}, "needs admin_tls_cert beside it"),
        (
            {
                "admin_tls_cert": files.path("garbage.pem"),
                "admin_tls_key": files.path("server.key"),
            },
            "admin_tls_cert = .*, admin_tls_key = .*: cannot be used",
        ),
    ):
        with (
            pytest.raises(OSError, match=message),
            serving(models_dir, replace(LISTEN, **wrong)),  # type: ignore[arg-type]  # all are files
        ):
            pass
