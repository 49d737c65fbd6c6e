"""Writes the messages that fuzzing begins with: `python seeds.py FOLDER`."""

import struct
import sys
from pathlib import Path

from trimtab.proto import open_inference_pb2 as pb

_TYPES = {
    "a": ("FP32", struct.pack("<2f", 1, 2), "fp32_contents", [1.0, 2.0]),
    "b": ("BYTES", b"\x02\0\0\0ab\0\0\0\0", "bytes_contents", [b"ab", b""]),
    "c": ("INT64", struct.pack("<2q", 1, -2), "int64_contents", [1, -2]),
    "d": ("UINT8", b"\x01\xff", "uint_contents", [1, 255]),
    "e": ("BOOL", b"\0\1", "bool_contents", [False, True]),
    "f": ("FP16", struct.pack("<2e", 1, 2), "", []),
}


def messages() -> dict[str, tuple[int, pb.ModelInferRequest]]:
    """By name: the target's schema and the request."""
    floats = pb.ModelInferRequest(model_name="m", model_version="1", id="id")
    floats.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    typed = pb.ModelInferRequest()
    typed.CopyFrom(floats)
    floats.raw_input_contents.append(struct.pack("<2f", 1, 2))
    typed.inputs[0].contents.fp32_contents.extend([1, 2])
    typed.outputs.add(name="yx")
    floats.parameters["timeout"].int64_param = 1000
    floats.parameters["event_time"].int64_param = 1000
    floats.parameters["priority"].uint64_param = 1
    floats.parameters["triton_enable_empty_final_response"].bool_param = True
    floats.parameters["x"].string_param = "y"
    strings = pb.ModelInferRequest(model_name="m")
    strings.inputs.add(name="x", datatype="BYTES", shape=[2, 1])
    strings.raw_input_contents.append(_TYPES["b"][1])
    raw = pb.ModelInferRequest(model_name="m")
    mirrored = pb.ModelInferRequest(model_name="m")
    for index, (name, (datatype, data, field, values)) in enumerate(_TYPES.items()):
        shape = [2] if index % 2 else [2, 1]
        raw.inputs.add(name=name, datatype=datatype, shape=shape)
        raw.raw_input_contents.append(data)
        tensor = mirrored.inputs.add(name=name, datatype=datatype, shape=shape)
        if field:
            getattr(tensor.contents, field).extend(values)
    return {
        "floats": (0, floats),
        "typed": (0, typed),
        "strings": (1, strings),
        "every_type": (2, raw),
        "mirrored": (3, mirrored),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, message) in messages().items():
        (folder / name).write_bytes(bytes([kind]) + message.SerializeToString())


if __name__ == "__main__":
    main()
