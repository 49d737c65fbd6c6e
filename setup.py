"""Compiles what is not plain Python: the protocol files and the Cython modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from grpc_tools import protoc
from setuptools import Extension, setup

# Contraction would let a value fall into another bin on another CPU. The Makefile adds -Wall
# -Wextra -Werror, which would be unkind to somebody who builds with a compiler of next year.
CFLAGS = ["-O3", "-g0", "-ffp-contract=off"]
CXXFLAGS = [*CFLAGS, "-std=c++17"]

# The extensions in C++, and what each is made of beside its .pyx. The others are C.
INFER_MESSAGE = ["infer_decode.cpp", "infer_encode.cpp", "parsed_request.cpp", "typed_contents.cpp"]
CXX_SOURCES: dict[str, list[str]] = {
    "infer_message": INFER_MESSAGE,
    "data_plane": [*INFER_MESSAGE, "plane.cpp", "request_queue.cpp", "served_version.cpp"],
}
GRPC_FRONTEND = ["frontend.cpp", "grpc_generic.cpp", "grpc_infer.cpp"]


def compile_protos() -> None:
    """Writes proto/*_pb2.py and .pyi, whose imports are absolute (trimtab.proto...).

    The messages go into a descriptor pool of our own: tritonclient registers the same names in
    protobuf's default pool, and one process must be able to import both.
    """
    out = Path("build/proto")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sources = [f"trimtab/{path.as_posix()}" for path in sorted(Path("proto").glob("*.proto"))]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi")]
    if protoc.main(["protoc", "-Itrimtab/proto=proto", *outputs, *sources]):
        raise SystemExit("protoc failed")
    pool_import = "from google.protobuf import descriptor_pool as _descriptor_pool"
    for module in (out / "trimtab/proto").glob("*_pb2.py"):
        text = module.read_text()
        if pool_import not in text:
            raise SystemExit(f"{module}: protoc no longer writes {pool_import!r}")
        module.write_text(
            text.replace(pool_import, "from trimtab.proto import _pool as _descriptor_pool")
        )
    shutil.copytree(out / "trimtab/proto", "proto", dirs_exist_ok=True)


def native_frontend() -> list[Extension]:
    """The gRPC transport in C++, where libgrpc++ is to be had.

    TRIMTAB_NATIVE_FRONTEND=0 leaves it out, 1 makes it an error that it cannot be built.
    """
    wanted = os.environ.get("TRIMTAB_NATIVE_FRONTEND", "auto")
    if wanted == "0":
        return []
    if why_not := _no_grpc():
        message = (
            f"{why_not}. It needs libgrpc++ with its headers and pkg-config "
            "(Debian: apt-get install libgrpc++-dev pkg-config)"
        )
        if wanted == "1":
            raise SystemExit(f"TRIMTAB_NATIVE_FRONTEND=1, but {message}")
        print(f"trimtab: the native frontend is left out: {message}", file=sys.stderr)
        return []
    # Its headers are not ours: nobody's warnings about them shall stop the build.
    headers = [flag.replace("-I", "-isystem", 1) for flag in _pkg_config("--cflags")]
    return [
        Extension(
            "trimtab._native.grpc_frontend",
            [f"_native/{name}" for name in ("grpc_frontend.pyx", *GRPC_FRONTEND)],
            depends=[each.as_posix() for each in sorted(Path("_native").glob("*.h"))],
            language="c++",
            # One process has two gRPC libraries, this one and that within grpcio: hidden, and only
            # what is needed, neither meets the other's symbols.
            extra_compile_args=[*CXXFLAGS, "-fvisibility=hidden", *headers],
            extra_link_args=["-Wl,--as-needed", *_pkg_config("--libs")],
            optional=wanted != "1",
        )
    ]


def _no_grpc() -> str:
    """Why the native frontend cannot be built; empty: it can."""
    if shutil.which("pkg-config") is None:
        return "there is no pkg-config"
    if subprocess.run(["pkg-config", "--exists", "grpc++"], check=False).returncode:
        return "pkg-config does not know grpc++"
    return ""


def _pkg_config(what: str) -> list[str]:
    return subprocess.check_output(["pkg-config", what, "grpc++"], text=True).split()


compile_protos()

extensions = [
    Extension(
        f"trimtab._native.{path.stem}",
        [path.as_posix(), *[f"_native/{name}" for name in CXX_SOURCES.get(path.stem, ())]],
        depends=[each.as_posix() for each in sorted(Path("_native").glob("*.h"))],
        language="c++" if path.stem in CXX_SOURCES else "c",
        extra_compile_args=CXXFLAGS if path.stem in CXX_SOURCES else CFLAGS,
    )
    for path in sorted(Path("_native").glob("*.pyx"))
    if path.stem != "grpc_frontend"
] + native_frontend()

setup(
    ext_modules=cythonize(extensions, build_dir="build/cython"),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
