"""Which blueprints this executor hosts, with their rules, and where the others are."""

import asyncio
from collections.abc import Iterable

from avtomatika_common.backend.ports import Backend, CatalogueEntry, StoreUnavailable
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.definitions import DefinitionError
from avtomatika_common.logs import get_logger
from avtomatika_core.outcomes import Rules
from avtomatika_core.retry_policy import RetryPolicy
from avtomatika_executor.settings import Settings

_BACK_OFF_SECONDS = 0.5

log = get_logger()


class Hosting:
    def __init__(
        self, settings: Settings, backend: Backend, blueprints: Iterable[StateMachineBlueprint]
    ) -> None:
        self._settings = settings
        self._catalogue = backend.catalogue
        self.blueprints = {blueprint.name: blueprint for blueprint in blueprints}
        self.rules = {name: self._rules_of(bp) for name, bp in self.blueprints.items()}
        self.default_rules = self._rules_of(None)

    def _rules_of(self, blueprint: StateMachineBlueprint | None) -> Rules:
        settings = self._settings
        return Rules(
            end_states=blueprint.end_outcomes if blueprint else {},
            has_failed_state=blueprint is not None and blueprint.has_failed_state,
            max_retries=settings.max_retries,
            retry_delay_seconds=settings.retry_delay_seconds,
            retry=(blueprint.retry if blueprint else None) or RetryPolicy(),
            dispatch_timeout_seconds=settings.dispatch_timeout_seconds,
            result_timeout_seconds=settings.result_timeout_seconds,
            max_transitions=settings.max_transitions,
            max_depth=settings.max_depth,
        )

    async def publish(self) -> None:
        """Tell gateways and other executors what is hosted here."""
        await self._catalogue.publish(
            [_entry_of(blueprint, self._settings.group) for blueprint in self.blueprints.values()]
        )

    async def keep_published(self) -> None:
        """Publish again whenever the catalogue has lost what is hosted here, until cancelled."""
        while True:
            try:
                version, entries = await self._catalogue.entries()
                if self.blueprints.keys() - {entry.name for entry in entries}:
                    log.warning("catalogue published again", blueprints=sorted(self.blueprints))
                    await self.publish()
                await self._catalogue.changed(version)
            except StoreUnavailable:
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def entry(self, name: str) -> CatalogueEntry:
        """Where blueprint `name` is hosted. Raises DefinitionError: nobody hosts it."""
        blueprint = self.blueprints.get(name)
        if blueprint is not None:
            return _entry_of(blueprint, self._settings.group)
        _, entries = await self._catalogue.entries()
        for entry in entries:
            if entry.name == name:
                return entry
        raise DefinitionError(f"Blueprint '{name}' not found.")


def _entry_of(blueprint: StateMachineBlueprint, group: str) -> CatalogueEntry:
    assert blueprint.start_state is not None, "a blueprint is validated before it is hosted"
    return CatalogueEntry(
        name=blueprint.name,
        group=group,
        start_state=blueprint.start_state,
        api_endpoint=blueprint.api_endpoint,
        api_version=blueprint.api_version,
        dot=blueprint.render_graph(),
        input_schema=blueprint.input_schema,
        events=blueprint.events,
    )
