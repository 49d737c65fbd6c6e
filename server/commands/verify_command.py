"""What `trimtab verify` does: looks for what a server would refuse, without starting one.

It reads every model's policy and every version's files and hashes. Whether a model loads and
answers as it should is for the server to find out; the recipe is for the trainer.
"""

from pathlib import Path

from trimtab.registry.directory import ModelDirectory, Registry
from trimtab.registry.errors import RegistryError

from ..config import ConfigError, ModelPolicy, load_model_policy


def verify(models_dir: Path) -> tuple[list[str], list[str]]:
    """(what was found whole, what is wrong), a sentence each; OSError."""
    registry = Registry(models_dir)
    whole: list[str] = []
    wrong: list[str] = []
    for name in registry.models():
        _check_model(registry.model(name), whole, wrong)
    return whole, wrong


def _check_model(model: ModelDirectory, whole: list[str], wrong: list[str]) -> None:
    problems = []
    try:
        load_model_policy(model.recipe_path, ModelPolicy())
    except ConfigError as error:
        problems.append(str(error))
    try:
        managed = model.is_managed()
        if managed and not (history := model.history()).valid:
            problems.append(f"{model.name}: its history was altered: {history.error}")
        for version in model.version_directories() if managed else ():
            try:
                model.verify(version)
            except RegistryError as error:
                problems.append(str(error))
        champion = model.state().champion if managed else None
        versions = len(model.versions())
    except RegistryError as error:
        problems.append(f"{model.name}: {error}")
    wrong += problems
    if not problems:
        kind = f"champion {champion or 'none'}" if managed else "unmanaged"
        whole.append(f"{model.name}: {versions} version{'' if versions == 1 else 's'}, {kind}")
