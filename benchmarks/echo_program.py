"""Compiles the C++ echo with the system's libgrpc++, once for each state of its sources.

The messages come from proto/open_inference.proto. Only those of ModelInfer are taken, so that the
system's protoc, which is years older than the one that Trimtab is built with, understands them.
"""

import re
from hashlib import sha256
from pathlib import Path

from making import MADE, PEERS, ROOT, AbsentError, run

_MESSAGES = ("InferParameter", "InferTensorContents", "ModelInferRequest", "ModelInferResponse")
_HINT = (
    "; apt-get install g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler "
    "protobuf-compiler-grpc"
)


def compiled_echo() -> Path:
    """The program. AbsentError where it cannot be made."""
    source = PEERS / "echo.cpp"
    proto = infer_proto((ROOT / "proto" / "open_inference.proto").read_text())
    digest = sha256(source.read_bytes() + proto.encode()).hexdigest()
    program = MADE / f"echo-{digest[:16]}"
    if program.exists():
        return program
    folder = MADE / "echo-sources"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "infer.proto").write_text(proto)
    plugin = run("which", "grpc_cpp_plugin", hint=_HINT)
    outputs = [f"--cpp_out={folder}", f"--grpc_out={folder}"]
    plugin_option = f"--plugin=protoc-gen-grpc={plugin}"
    run("protoc", f"-I{folder}", plugin_option, *outputs, "infer.proto", hint=_HINT)
    flags = run("pkg-config", "--cflags", "--libs", "grpc++", "protobuf", hint=_HINT).split()
    generated = [folder / "infer.pb.cc", folder / "infer.grpc.pb.cc"]
    command: list[str | Path] = ["g++", "-std=c++17", "-O2", f"-I{folder}", source, *generated]
    unfinished = program.with_suffix(".tmp")
    run(*command, "-o", unfinished, *flags, hint=_HINT)
    unfinished.rename(program)
    return program


def grpc_release() -> str:
    """The system's libgrpc++; empty where there is none."""
    try:
        return run("pkg-config", "--modversion", "grpc++")
    except AbsentError:
        return ""


def infer_proto(text: str) -> str:
    """The part of the protocol that ModelInfer needs."""
    parts = [_message(text, name) for name in _MESSAGES]
    service = "service GRPCInferenceService {\n  rpc ModelInfer(ModelInferRequest) "
    service += "returns (ModelInferResponse);\n}"
    return "\n\n".join(['syntax = "proto3";', "package inference;", service, *parts]) + "\n"


def _message(text: str, name: str) -> str:
    """A message at the top level: it ends with the first brace that begins a line."""
    found = re.search(rf"^message {name} {{$.*?^}}$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"the protocol has no message {name}")
    return found[0]
