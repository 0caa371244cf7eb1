"""Which orchestrators a worker serves, and which of them it asks for its next task."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

_SCHEMES: Final = ("http://", "https://", "mock://")


class InvalidOrchestrator(ValueError):
    """The list of orchestrators cannot be used; the text says why."""


class Orchestrator(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    priority: int = 10
    weight: int = 1
    token: str | None = None
    """Instead of the worker's own token, where this orchestrator wants another."""


def read_orchestrators(given: Sequence[Mapping[str, object]]) -> tuple[Orchestrator, ...]:
    """The orchestrators, the one to be asked first in front: by priority, then by URL."""
    if not given:
        raise InvalidOrchestrator("No orchestrators configured.")
    if not all(entry.get("url") for entry in given):
        raise InvalidOrchestrator("Orchestrator configuration missing URL.")
    for entry in given:
        if not str(entry["url"]).startswith(_SCHEMES):
            raise InvalidOrchestrator(
                f"The URL of orchestrator '{entry['url']}' must begin with http:// or https://."
            )
    return tuple(sorted(map(read_orchestrator, given), key=lambda one: (one.priority, one.url)))


def read_orchestrator(given: Mapping[str, object]) -> Orchestrator:
    try:
        orchestrator = msgspec.convert(given, Orchestrator)
    except msgspec.ValidationError as error:
        raise InvalidOrchestrator(f"Orchestrator configuration is wrong: {error}") from error
    if orchestrator.weight < 1:
        raise InvalidOrchestrator(f"The weight of orchestrator {orchestrator.url} is below 1.")
    return orchestrator


def unread_keys(given: Sequence[Mapping[str, object]]) -> list[str]:
    """Keys of the configuration that mean nothing, perhaps misspelt."""
    known = {field.name for field in msgspec.structs.fields(Orchestrator)}
    return sorted({key for entry in given for key in entry} - known)


class Turns:
    """Smooth weighted round robin: in the long run by weight, in the short run never in bursts."""

    def __init__(self) -> None:
        self._credits: dict[str, int] = {}

    def choose(self, usable: Sequence[Orchestrator]) -> Orchestrator:
        for one in usable:
            self._credits[one.url] = self._credits.get(one.url, 0) + one.weight
        chosen = max(usable, key=lambda one: self._credits[one.url])
        self._credits[chosen.url] -= sum(one.weight for one in usable)
        return chosen
