"""The blueprints executors have published, as the gateway serves them: always as they are now."""

import asyncio

from avtomatika_common.backend.ports import Catalogue, CatalogueEntry, StoreUnavailable
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.logs import get_logger

_BACKOFF_SECONDS = 1.0

log = get_logger()


class Blueprints:
    """A copy of the catalogue, read again when it changes and once for what is not in it."""

    def __init__(self, catalogue: Catalogue, base: str) -> None:
        """`base`: the path of the client API, `/api` or empty."""
        self._catalogue = catalogue
        self._base = base
        self._version = ""
        self._by_name: dict[str, CatalogueEntry] = {}
        self._by_path: dict[str, CatalogueEntry] = {}
        self._api_versions: frozenset[str] = frozenset()

    async def follow(self) -> None:
        """Keep the copy current until cancelled."""
        while True:
            try:
                await self.refresh()
                await self._catalogue.changed(self._version)
            except StoreUnavailable as reason:
                log.warning("catalogue not read", reason=str(reason))
                await asyncio.sleep(_BACKOFF_SECONDS)
            except Exception:
                log.exception("catalogue not read")
                await asyncio.sleep(_BACKOFF_SECONDS)

    async def refresh(self) -> None:
        version, entries = await self._catalogue.entries()
        if version == self._version:
            return
        self._version = version
        self._by_name = {entry.name: entry for entry in entries}
        self._by_path = {}
        for entry in entries:
            if entry.api_endpoint:
                path = path_of(self._base, entry)
                if other := self._by_path.get(path):
                    names = sorted((other.name, entry.name))
                    log.warning("two blueprints have one endpoint", path=path, blueprints=names)
                self._by_path[path] = entry
        self._api_versions = frozenset(
            entry.api_version for entry in entries if entry.api_endpoint and entry.api_version
        )
        log.info("catalogue read", blueprints=sorted(self._by_name))

    async def named(self, name: str) -> CatalogueEntry | None:
        if name not in self._by_name:
            await self.refresh()
        return self._by_name.get(name)

    async def served_at(self, path: str) -> CatalogueEntry | None:
        """The blueprint whose jobs are made by a POST to `path`."""
        if path not in self._by_path and path.startswith(self._base + "/"):
            await self.refresh()
        return self._by_path.get(path)

    async def is_api_version(self, version: str) -> bool:
        """Whether a blueprint is served under this version."""
        if version not in self._api_versions:
            await self.refresh()
        return version in self._api_versions


def path_of(base: str, entry: CatalogueEntry | StateMachineBlueprint) -> str:
    """Where jobs of the blueprint are made: `/api/v1/jobs/x`."""
    version = f"/{entry.api_version.strip('/')}" if entry.api_version else ""
    endpoint = entry.api_endpoint or ""
    return f"{base}{version}/{endpoint.removeprefix('/')}"
