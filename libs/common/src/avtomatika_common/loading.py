"""Finding the user's blueprints: named by the environment, or lying in a directory."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import cast

from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import get_logger

log = get_logger()


def blueprints_of(config: Config) -> list[StateMachineBlueprint]:
    """All blueprints the configuration names, validated.

    Raises StartupError for one of AVTOMATIKA_BLUEPRINTS that cannot be had, and where there is none
    at all; a bad file of BLUEPRINTS_DIR is only logged.
    """
    found: dict[str, StateMachineBlueprint] = {}
    for blueprint in (*_named(config.AVTOMATIKA_BLUEPRINTS), *in_directory(config.BLUEPRINTS_DIR)):
        other = found.setdefault(blueprint.name, blueprint)
        if other is not blueprint:
            raise StartupError(f"Two blueprints are named '{blueprint.name}'; rename one of them.")
    if not found:
        raise StartupError(
            "There is no blueprint to run: set AVTOMATIKA_BLUEPRINTS to module or module:attribute "
            "(comma-separated), or BLUEPRINTS_DIR to a directory of Python files."
        )
    return list(found.values())


def _named(names: str) -> Iterator[StateMachineBlueprint]:
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    for name in filter(None, (part.strip() for part in names.split(","))):
        module_name, _, attribute = name.partition(":")
        try:
            module = importlib.import_module(module_name)
            blueprints = _as_list(getattr(module, attribute)) if attribute else _all_of(module)
            if not blueprints:
                raise ValueError(f"module '{module_name}' has no blueprint")
            for blueprint in blueprints:
                blueprint.validate()
        except Exception as error:
            raise StartupError(
                f"AVTOMATIKA_BLUEPRINTS names '{name}', which cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        yield from blueprints


def in_directory(directory: str) -> Iterator[StateMachineBlueprint]:
    """The blueprints of every `*.py` in `directory` (empty: none); a bad file is logged.

    Raises StartupError where there is no such directory.
    """
    if not directory:
        return
    if not Path(directory).is_dir():
        raise StartupError(f"BLUEPRINTS_DIR is '{directory}', which is not a directory.")
    for path in sorted(Path(directory).glob("*.py")):
        try:
            spec = importlib.util.spec_from_file_location(f"avtomatika_user_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            blueprints = _all_of(module)
            for blueprint in blueprints:
                blueprint.validate()
        except Exception:
            sys.modules.pop(f"avtomatika_user_{path.stem}", None)
            log.exception("blueprint file cannot be loaded", path=str(path))
            continue
        yield from blueprints


def _all_of(module: ModuleType) -> list[StateMachineBlueprint]:
    found = [value for value in vars(module).values() if isinstance(value, StateMachineBlueprint)]
    return list(dict.fromkeys(found))


def _as_list(value: object) -> list[StateMachineBlueprint]:
    if isinstance(value, StateMachineBlueprint):
        return [value]
    listed = list(cast("Iterable[object]", value)) if isinstance(value, Iterable) else []
    blueprints = [entry for entry in listed if isinstance(entry, StateMachineBlueprint)]
    if not blueprints or len(blueprints) < len(listed):
        raise ValueError("it is neither a blueprint nor a list of blueprints")
    return blueprints
