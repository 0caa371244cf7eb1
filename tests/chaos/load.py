"""Clients that make jobs of every kind through the HTTP door, and note what they were told.

Whatever is not answered, or refused for the moment, is asked again until there is an answer. What was
answered 2xx is accepted: that log is the truth the verdict starts from.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec

from tests.chaos.kinds import TERMINAL

CLIENT_TOKEN: Final = "secure-orchestrator-token"
JOBS_PER_SECOND: Final = 6.0
PATIENCE_SECONDS: Final = 10.0
"""For one answer; then it is asked again."""

_KINDS: Final = {
    "chain": 24,
    "tasks": 24,
    "fans": 12,
    "parents": 10,
    "approvals": 8,
    "naps": 10,
    "signals": 10,
    "endless": 9,
    "orphans": 3,
}
_WAYS: Final = ("sleep", "signal", "approval", "task", "fan", "child", "handler")

_LARGE: Final = 300
"""Branches of a fan-out that is laid beside its job in more than one piece."""


class Act(msgspec.Struct):
    """One thing a client wanted, and what it was told."""

    what: str
    about: str = ""
    statuses: list[int] = []
    """Of each try; 0: there was no answer."""
    answer: Any = None
    at: float = 0.0

    @property
    def status(self) -> int:
        """The last one; 0 while there is none."""
        return self.statuses[-1] if self.statuses else 0

    @property
    def is_certain(self) -> bool:
        """It was asked once, and answered."""
        return len(self.statuses) == 1 and self.statuses[0] != 0


class Entry(msgspec.Struct):
    """A job in its client's log."""

    key: str
    blueprint: str
    initial_data: dict[str, Any]
    timeout_seconds: float | None = None
    job_id: str = ""
    acts: list[Act] = []

    def acts_of(self, what: str) -> list[Act]:
        return [act for act in self.acts if act.what == what]


class Client:
    """Asks until it is answered."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(
        self,
        act: Act,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Act:
        act.at = time.time()  # noqa: TID251 - to be compared with logs
        while True:
            status, act.answer = await self._try(method, path, body, headers or {})
            act.statuses.append(status)
            if 0 < status < 500:
                return act
            await asyncio.sleep(0.2)

    async def _try(
        self, method: str, path: str, body: object, headers: Mapping[str, str]
    ) -> tuple[int, Any]:
        try:
            async with self._session.request(
                method, path, json=body, headers={"X-Client-Token": CLIENT_TOKEN, **headers}
            ) as answer:
                text = await answer.text()
                return answer.status, msgspec.json.decode(text) if text else None
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return 0, None

    async def get(self, path: str) -> Act:
        return await self.ask(Act("get", path), "GET", path)


class Load:
    def __init__(self, client: Client, seed: int, webhook_url: str) -> None:
        self._client = client
        self._draw = random.Random(f"{seed}/load")
        self._seed = seed
        self._webhook_url = webhook_url
        self.entries: list[Entry] = []

    async def run(self, seconds: float, jobs_per_second: float = JOBS_PER_SECOND) -> None:
        """Make jobs for so long; returns when every client has done what it wanted."""
        begun = time.monotonic()
        number = 0
        async with asyncio.TaskGroup() as group:
            while (passed := time.monotonic() - begun) < seconds:
                while number < passed * jobs_per_second:
                    entry = self._drawn_entry(number)
                    group.create_task(self.live(entry, random.Random(f"{entry.key}/acts")))
                    number += 1
                await asyncio.sleep(0.02)

    def new_entry(
        self, key: str, blueprint: str, data: Mapping[str, Any], timeout_seconds: float | None
    ) -> Entry:
        entry = Entry(key, blueprint, {"key": key, **data}, timeout_seconds)
        self.entries.append(entry)
        return entry

    def _drawn_entry(self, number: int) -> Entry:
        draw = self._draw
        kind = draw.choices(list(_KINDS), list(_KINDS.values()))[0]
        data: dict[str, Any] = {}
        timeout: float | None = None
        match kind:
            case "chain":
                data |= {"slow": draw.choice((0.0, 0.1, 0.5)), "raises": draw.choice((0.0, 0.15))}
            case "fans":
                few = draw.choice((0, 1, 2, 4, 8))
                data["branches"] = few if draw.random() < 0.97 else _LARGE
            case "approvals":
                data["patience"] = draw.choice((300.0, 300.0, 300.0, 3.0))
            case "naps":
                data |= {"seconds": round(draw.uniform(0.0, 3.0), 2), "times": draw.randint(1, 3)}
            case "signals":
                data |= {"seconds": round(draw.uniform(0.0, 2.0), 2), "count": draw.randint(1, 3)}
            case "endless":
                data["way"] = draw.choice(_WAYS)
                timeout = round(draw.uniform(0.5, 5.0), 2) if draw.random() < 0.4 else None
            case _:
                pass
        return self.new_entry(f"{self._seed}-{number}-{kind}", kind, data, timeout)

    async def live(self, entry: Entry, draw: random.Random, *, hurry: float = 1.0) -> None:
        """Make the job and do with it what `draw` says; delays are `hurry` times as long."""
        await self._create(entry, twice=draw.random() < 0.15)
        if not entry.job_id:
            return
        must_stop = entry.blueprint == "endless" and entry.timeout_seconds is None
        async with asyncio.TaskGroup() as group:
            if must_stop or draw.random() < 0.06:
                later, twice = hurry * draw.uniform(0.0, 4.0), draw.random() < 0.2
                group.create_task(self._cancel(entry, later, twice=twice))
            if entry.blueprint == "signals":
                for number in range(entry.initial_data["count"]):
                    twice = draw.random() < 0.3
                    later = hurry * draw.uniform(0.0, 4.0)
                    group.create_task(self._signal(entry, number, later, twice=twice))
            if entry.blueprint == "approvals" and entry.initial_data["patience"] > 10:
                decisions = draw.choice((["approved"], ["rejected"], ["approved", "rejected"]))
                later = hurry * draw.uniform(0.0, 2.0)
                group.create_task(self._decide(entry, decisions, later))

    async def _create(self, entry: Entry, *, twice: bool) -> None:
        body: dict[str, Any] = {
            "initial_data": entry.initial_data,
            "webhook_url": self._webhook_url,
        }
        if entry.timeout_seconds is not None:
            body["timeout_seconds"] = entry.timeout_seconds
        path, headers = f"/api/v1/jobs/{entry.blueprint}", {"Idempotency-Key": entry.key}
        asked = [Act("create") for _ in range(2 if twice else 1)]
        entry.acts += asked
        await asyncio.gather(*(self._client.ask(act, "POST", path, body, headers) for act in asked))
        ids = [act.answer["job_id"] for act in asked if act.status == 202]
        entry.job_id = ids[0] if ids else ""

    async def _cancel(self, entry: Entry, later: float, *, twice: bool) -> None:
        await asyncio.sleep(later)
        asked = [Act("cancel") for _ in range(2 if twice else 1)]
        entry.acts += asked
        path = f"/api/v1/jobs/{entry.job_id}/cancel"
        await asyncio.gather(*(self._client.ask(act, "POST", path) for act in asked))

    async def _signal(self, entry: Entry, number: int, later: float, *, twice: bool) -> None:
        await asyncio.sleep(later)
        path = f"/api/v1/jobs/{entry.job_id}/signals/go"
        headers = {"Idempotency-Key": f"{entry.key}/{number}"}
        asked = [Act("signal", str(number)) for _ in range(2 if twice else 1)]
        entry.acts += asked
        await asyncio.gather(
            *(self._client.ask(act, "POST", path, {"number": number}, headers) for act in asked)
        )

    async def _decide(self, entry: Entry, decisions: list[str], later: float) -> None:
        await asyncio.sleep(later)
        while True:
            shown = await self._client.get(f"/api/v1/jobs/{entry.job_id}?fields=status")
            if shown.status != 200:
                entry.acts.append(shown)
                return
            if shown.answer["status"] == "waiting_for_human":
                break
            if shown.answer["status"] in TERMINAL:
                return
            await asyncio.sleep(0.3)
        asked = [Act("decide", decision) for decision in decisions]
        entry.acts += asked
        path = f"/_public/webhooks/approval/{entry.job_id}"
        await asyncio.gather(
            *(self._client.ask(act, "POST", path, {"decision": act.about}) for act in asked)
        )
