"""What a registry refuses, and why. A disk that fails raises OSError, as everywhere in Python."""


class RegistryError(Exception):
    """Base of everything that a registry refuses."""


class InvalidNameError(RegistryError):
    """The name cannot be that of a model or of a version's file."""


class VersionNotFoundError(RegistryError):
    """The model has no such version directory."""


class InvalidVersionError(RegistryError):
    """The version is there but not whole; the message says which file and what about it."""


class InvalidStateError(RegistryError):
    """state.json cannot be read; the message says what about it."""


class NoPreviousError(RegistryError):
    """There is no earlier champion that a rollback could return to, or not the one named."""


class UnmanagedModelError(RegistryError):
    """The model has nothing that Trimtab published, so there is nothing to decide about."""


class VersionInUseError(RegistryError):
    """The version has a role that forbids what is asked; the message says which."""


class FrozenModelError(RegistryError):
    """An operator wants no automatic change of this model's champion."""


class BlockedVersionError(RegistryError):
    """The version is blocked: no automatic change may promote it; the message says why."""


class LockTimeoutError(RegistryError):
    """Somebody has held a lock for longer than anybody works under it: stopped, or on a stuck disk."""


class RevisionConflictError(RegistryError):
    """Somebody else changed the champion in between: a compare-and-swap was lost."""

    def __init__(self, model: str, *, expected: int, actual: int) -> None:
        super().__init__(f"model '{model}' is at revision {actual}, not at the expected {expected}")
        self.expected = expected
        self.actual = actual
