"""Asks a served model one thing, or tells it the true value of what was asked before.

    python examples/client.py price --numeric 3 80 1970 --categorical Ghent gas --id sale-1
    python examples/client.py price --id sale-1 --label 270000

Plain gRPC and the messages that trimtab installs. In other languages, make stubs from
`proto/open_inference.proto` and `proto/feedback.proto`; tritonclient asks as well.
"""

import argparse
import struct

import grpc

from trimtab.proto import feedback_pb2, open_inference_pb2


def infer(channel: grpc.Channel, options: argparse.Namespace) -> None:
    request = open_inference_pb2.ModelInferRequest(model_name=options.model, id=options.id)
    if options.numeric:
        request.inputs.add(name="numeric", datatype="FP32", shape=[1, len(options.numeric)])
        raw = struct.pack(f"<{len(options.numeric)}f", *options.numeric)
        request.raw_input_contents.append(raw)
    if options.categorical:
        request.inputs.add(
            name="categorical", datatype="BYTES", shape=[1, len(options.categorical)]
        )
        words = [word.encode() for word in options.categorical]
        raw = b"".join(struct.pack("<I", len(word)) + word for word in words)
        request.raw_input_contents.append(raw)
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        open_inference_pb2.ModelInferRequest.SerializeToString,
        open_inference_pb2.ModelInferResponse.FromString,
    )
    reply = call(request, timeout=10)
    print(f"id {reply.id}, answered by version {reply.model_version}")
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        if output.datatype == "BYTES":  # a class
            print(f"{output.name}: {raw[4:].decode()}")
        else:
            kind = {"FP32": "f", "INT64": "q"}[output.datatype]
            values = struct.unpack(f"<{len(raw) // struct.calcsize(kind)}{kind}", raw)
            print(f"{output.name}: {' '.join(f'{value:g}' for value in values)}")


def submit_label(channel: grpc.Channel, options: argparse.Namespace) -> None:
    request = feedback_pb2.SubmitLabelsRequest(model_name=options.model)
    label = request.labels.add(id=options.id, row=0)
    try:
        label.number = float(options.label)
    except ValueError:
        label.text = options.label
    call = channel.unary_unary(
        "/trimtab.v1.Feedback/SubmitLabels",
        feedback_pb2.SubmitLabelsRequest.SerializeToString,
        feedback_pb2.SubmitLabelsResponse.FromString,
    )
    print(f"labels taken: {call(request, timeout=10).accepted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--numeric", nargs="*", type=float, help="the recipe's numeric columns")
    parser.add_argument("--categorical", nargs="*", help="the recipe's categorical columns")
    parser.add_argument("--id", default="", help="names the request; the server mints one")
    parser.add_argument("--label", help="the true value of that request")
    parser.add_argument("--server", default="127.0.0.1:8001", help="inference port")
    options = parser.parse_args()
    with grpc.insecure_channel(options.server) as channel:
        if options.label is None:
            infer(channel, options)
        else:
            submit_label(channel, options)


if __name__ == "__main__":
    main()
