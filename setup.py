"""Compiles what is not plain Python: the protocol files and the Cython modules."""

import shutil
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
]

setup(ext_modules=cythonize(extensions, build_dir="build/cython"))
