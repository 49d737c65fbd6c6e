"""Old versions that go: which, and why others stay. For a server and for a command without one.

Beside what the registry holds on to, a version stays that the model's [serving] versions keeps
loaded: clients name it in their requests.
"""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass

from trimtab.proto import admin_pb2 as pb
from trimtab.registry import retention
from trimtab.registry.directory import ModelDirectory, Why
from trimtab.registry.errors import UnmanagedModelError, VersionInUseError, VersionNotFoundError

from ...config import ModelPolicy, load_model_policy

_SERVED = "kept loaded by [serving] versions in its trimtab.toml"


@dataclass(frozen=True)
class RetentionPlan:
    """What is to become of all but the newest versions."""

    remove: tuple[int, ...]
    keep: tuple[tuple[int, str], ...]  # and why


def plan(directory: ModelDirectory, keep: int) -> RetentionPlan:
    """All but the newest `keep` and those that are needed go; ValueError unless `keep` is above 0.

    UnmanagedModelError; ConfigError if the model's trimtab.toml cannot be read.
    """
    if not directory.is_managed():
        raise UnmanagedModelError(
            f"model '{directory.name}' is not managed: nothing was published into it"
        )
    versions, state, served = directory.versions(), directory.state(), _served(directory)
    remove = [each for each in retention.plan(versions, state, keep) if each not in served]
    older = sorted(versions)[:-keep]
    kept = [(each, retention.held(each, state) or _SERVED) for each in older if each not in remove]
    return RetentionPlan(tuple(remove), tuple(kept))


def retain(directory: ModelDirectory, keep: int, why: Why) -> RetentionPlan:
    """Does it; what came to be needed, or went, in the meantime is passed over."""
    found = plan(directory, keep)
    removed = []
    for version in found.remove:
        with contextlib.suppress(VersionNotFoundError, VersionInUseError):
            directory.remove(version, **why)
            removed.append(version)
    return RetentionPlan(tuple(removed), found.keep)


def remove(directory: ModelDirectory, version: int, why: Why) -> None:
    """Removes one. VersionInUseError, or whatever `ModelDirectory.remove` raises."""
    if version in _served(directory):
        raise VersionInUseError(f"version {version} of model '{directory.name}' is {_SERVED}")
    directory.remove(version, **why)


def message_of(found: RetentionPlan) -> pb.RetainResponse:
    """A plan as the protocol has it."""
    kept = [pb.KeptVersion(version=version, reason=reason) for version, reason in found.keep]
    return pb.RetainResponse(removed=found.remove, kept=kept)


def _served(directory: ModelDirectory) -> Collection[int]:
    return load_model_policy(directory.recipe_path, ModelPolicy()).serving.versions
