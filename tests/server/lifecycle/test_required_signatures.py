"""A real server that serves only what a trusted key has signed."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from tests import models
from tests.admin_port import LISTEN, serving
from trimtab.proto import open_inference_pb2 as pb
from trimtab.registry import signing
from trimtab.registry.directory import ModelDirectory
from trimtab.registry.errors import RegistryError
from trimtab.registry.manifest import MANIFEST_NAME, SIGNATURE_NAME
from trimtab.registry.signing import SigningKey
from trimtab.server.commands.admin_client import AdminClient, AdminError
from trimtab.server.config import RegistryConfig
from trimtab.server.inference.onnx_session import open_session

_INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, SigningKey]:
    for name in ("ann", "bob"):
        signing.new_key(tmp_path / f"{name}.key")
    return {name: SigningKey.load(tmp_path / f"{name}.key") for name in ("ann", "bob")}


@pytest.fixture
def only_anns(tmp_path: Path) -> RegistryConfig:
    return RegistryConfig(require_signature=True, trusted_keys=(str(tmp_path / "ann.key.pub"),))


def publish(models_dir: Path, factor: float, key: SigningKey | None) -> int:
    directory = ModelDirectory(models_dir / "m")
    with directory.stage() as staged:
        file = staged.path / "model.onnx"
        file.write_bytes(models.scaled(factor))
        return staged.publish(
            signature=open_session(file).signature,
            task="regression",
            lineage={},
            metrics={},
            actor="ann",
            reason="to be served",
            signing_key=key,
        )


def predict(address: str) -> tuple[str, float]:
    """(version, factor) of what answers."""
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    request.raw_input_contents.append(np.ones((1, 2), np.float32).tobytes())
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_INFER, None, None)
        reply = pb.ModelInferResponse.FromString(call(request.SerializeToString(), timeout=30))
    return reply.model_version, float(np.frombuffer(reply.raw_output_contents[0], np.float32)[0])


def test_only_what_a_trusted_key_has_signed_is_served(
    tmp_path: Path, keys: dict[str, SigningKey], only_anns: RegistryConfig
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for factor, key in ((1.0, keys["ann"]), (2.0, None), (3.0, keys["bob"]), (4.0, keys["ann"])):
        publish(folder, factor, key)
    with (
        serving(folder, LISTEN, registry=only_anns) as server,
        AdminClient(f"127.0.0.1:{server.admin_port}") as admin,
    ):
        assert predict(server.inference) == ("1", 1.0)
        for version, why in ((2, "is not signed"), (3, keys["bob"].fingerprint)):
            with pytest.raises(AdminError, match="cannot be loaded") as refused:
                admin.promote("m", version, actor="ann", reason="try")
            assert why in str(refused.value)
            assert predict(server.inference) == ("1", 1.0)
        admin.promote("m", 4, actor="ann", reason="signed")
        assert predict(server.inference) == ("4", 4.0)
        (listed,) = admin.list_versions("m").models
        states = {each.version: each.state for each in listed.versions}
        assert states == {1: "READY", 2: "FAILED", 3: "FAILED", 4: "READY"}


def test_an_unsigned_champion_is_not_served_at_the_start_and_one_put_right_is(
    tmp_path: Path, keys: dict[str, SigningKey], only_anns: RegistryConfig
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    publish(folder, 1.0, None)
    path = folder / "m" / "1"
    with serving(folder, LISTEN, registry=only_anns) as server:
        with pytest.raises(grpc.RpcError) as refused:
            predict(server.inference)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    (path / SIGNATURE_NAME).write_bytes(keys["ann"].sign((path / MANIFEST_NAME).read_bytes()))
    with serving(folder, LISTEN, registry=only_anns) as server:
        assert predict(server.inference) == ("1", 1.0)
    with serving(folder, LISTEN) as server:
        assert predict(server.inference) == ("1", 1.0), "nobody asks for a signature"


def test_a_server_that_trusts_a_key_which_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    missing = RegistryConfig(require_signature=True, trusted_keys=(str(tmp_path / "missing.pub"),))
    with (
        pytest.raises(RegistryError, match=r"missing\.pub"),
        serving(tmp_path / "models", LISTEN, registry=missing),
    ):
        pytest.fail("it has started")
