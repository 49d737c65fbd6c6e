"""Trimtab's messages and another package's of the same names live in one process."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from trimtab.proto import admin_pb2, model_config_pb2, open_inference_pb2


def test_the_same_message_names_in_protobufs_default_pool_do_not_clash() -> None:
    """What importing tritonclient does: `inference.ModelInferRequest` into the default pool."""
    pool = descriptor_pool.Default()
    for ours, name in (
        (model_config_pb2.DESCRIPTOR, "model_config.proto"),
        (open_inference_pb2.DESCRIPTOR, "grpc_service.proto"),
    ):
        theirs = descriptor_pb2.FileDescriptorProto()
        ours.CopyToProto(theirs)
        theirs.name = name
        theirs.dependency[:] = ["model_config.proto" for _ in theirs.dependency]
        pool.Add(theirs)
    their_request = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("inference.ModelInferRequest")
    )

    sent = their_request(model_name="airtime", raw_input_contents=[b"abc"])
    read = open_inference_pb2.ModelInferRequest.FromString(sent.SerializeToString())

    assert type(read) is not their_request
    assert (read.model_name, list(read.raw_input_contents)) == ("airtime", [b"abc"])


def test_both_packages_are_ours_alone() -> None:
    assert open_inference_pb2.DESCRIPTOR.pool is admin_pb2.DESCRIPTOR.pool
    assert open_inference_pb2.DESCRIPTOR.pool is not descriptor_pool.Default()
