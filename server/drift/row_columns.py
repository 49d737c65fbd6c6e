"""Which tensors of a request are rows of columns, and what those columns are called.

The drift monitor and the traffic log look at the same columns under the same names: a tensor of
rank 1 is one column, one of rank 2 has as many as its second dimension; anything of higher rank,
of no width, or without one entry per row, is not columns. Names come from the manifest where it has them, else
they are the tensor's own: `name` for a single column, `name[0]`, `name[1]`, … for several.
"""

from trimtab.registry.manifest import TensorSpec

from ..inference.tensor import Tensor


def width_of(tensor: Tensor, rows: int) -> int | None:
    """How many columns a tensor of `rows` rows has; None where it is not columns."""
    shape = tensor.shape
    if not 1 <= len(shape) <= 2 or shape[0] != rows:
        return None
    return 1 if len(shape) == 1 else shape[1] or None


def declared_width(spec: TensorSpec) -> int | None:
    """How many columns a tensor of this signature always has; None where that varies."""
    if len(spec.shape) == 1:
        return 1
    if len(spec.shape) == 2 and spec.shape[1] > 0:
        return spec.shape[1]
    return None


def names_of(spec: TensorSpec, width: int) -> tuple[str, ...]:
    """The names of a tensor's columns, in order."""
    if len(spec.columns) == width:
        return tuple(spec.columns)
    if width == 1:
        return (spec.name,)
    return tuple(f"{spec.name}[{index}]" for index in range(width))
