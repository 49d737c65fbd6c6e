"""Names of models and of files in a version: they become paths, so they must be plain.

A plain name has 1 to 255 bytes in UTF-8, does not begin with a dot (hidden entries are the
registry's own) and contains no slash, no white space and no control character.
"""

from .errors import InvalidNameError

_MAX_BYTES = 255  # the limit of the usual file systems


def is_plain(name: str) -> bool:
    return (
        all(char.isprintable() and not char.isspace() and char != "/" for char in name)
        and not name.startswith(".")
        and 0 < len(name.encode()) <= _MAX_BYTES
    )


def check_model_name(name: str) -> None:
    """Raises InvalidNameError unless the name can be that of a model's directory."""
    if not is_plain(name):
        raise InvalidNameError(
            f"model name {name!r} is not allowed: it must have 1 to {_MAX_BYTES} bytes, must not"
            " begin with '.' and must not contain '/', white space or control characters"
        )
