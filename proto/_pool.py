"""The descriptor pool that holds Trimtab's messages.

tritonclient puts messages of the same full names (`inference.ModelInferRequest`) into protobuf's
default pool, where a second registration fails. setup.py makes the generated modules import this
module in place of `google.protobuf.descriptor_pool`, so both live in one process.
"""

from google.protobuf.descriptor_pool import DescriptorPool

_POOL = DescriptorPool()


def Default() -> DescriptorPool:  # noqa: N802 - the generated code calls it by protobuf's name
    return _POOL
