"""When a version that could not be loaded is tried again: values in, a time out.

What is wrong with files is mended by changing them, and a change is followed at once; unless the
version has failed again and again, as one does that is being copied bit by bit. What is wrong with
the machine (no memory, no file descriptors, a disk that does not answer, no permission) passes
without a trace in the files, and is tried again after a pause. Pauses double up to a minute.
"""

from dataclasses import dataclass

_FIRST_S = 1.0
_LONGEST_S = 60.0

# Told by the files themselves once it is otherwise.
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class Failures:
    """Loads of one version that failed, one after another."""

    count: int  # from 1
    last: float  # the clock's seconds
    transient: bool  # the last one

    @property
    def changed_at(self) -> float:
        """From when on a change of the files is a reason to try again."""
        return self.last + _pause_s(self.count - 1)

    @property
    def retry_at(self) -> float | None:
        """When to try again though no file changed; None: never."""
        return self.last + _pause_s(self.count) if self.transient else None


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, may pass by itself."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and not isinstance(error, _LASTING):
            return True
        error = error.__cause__ or error.__context__
    return False


def _pause_s(failures: int) -> float:
    return min(_FIRST_S * 2.0 ** (min(failures, 30) - 1), _LONGEST_S) if failures > 0 else 0.0
