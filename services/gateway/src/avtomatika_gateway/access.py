"""Who is asking: a client by `X-Client-Token`, a worker by `X-Worker-Token`.

Tokens are kept as sha256 only and compared in constant time.
"""

import hashlib
import hmac
from typing import Any

import msgspec

from avtomatika_core.job import Client, WorkerId
from avtomatika_gateway.refusals import Unauthenticated


class ApiClient(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated client of the API."""

    name: str
    plan: str = "unknown"
    params: dict[str, Any] = {}
    is_admin: bool = False

    def may_see(self, owner: str | None) -> bool:
        """Whether a job of `owner` (None: nobody's) exists for this client."""
        return self.is_admin or owner == self.name

    @property
    def scope(self) -> str | None:
        """Whose jobs its lists show; None: everybody's."""
        return None if self.is_admin else self.name

    def as_job_client(self) -> Client:
        return Client(name=self.name, plan=self.plan, params=self.params)


class Access:
    """The tokens that open the door."""

    def __init__(self, client_token_digest: bytes, worker_token_digest: bytes) -> None:
        self._client_token_digest = client_token_digest
        self._worker_token_digest = worker_token_digest

    async def client(self, token: str | None) -> ApiClient:
        """Raises Unauthenticated."""
        if not token:
            raise Unauthenticated("Missing X-Client-Token header")
        if not hmac.compare_digest(digest(token), self._client_token_digest):
            raise Unauthenticated("Unauthorized: Invalid token")
        return ApiClient(name="default", is_admin=True)

    async def worker(self, token: str | None, hint: str | None) -> WorkerId | None:
        """The worker that sends the request; `hint` is the id it names itself.

        None: the token is good, but says nothing about which worker it is. Raises Unauthenticated.
        """
        if not token:
            raise Unauthenticated("Missing X-Worker-Token header or client certificate")
        if not hmac.compare_digest(digest(token), self._worker_token_digest):
            raise Unauthenticated(
                "Unauthorized: No valid token found"
                if hint
                else "Unauthorized: Invalid token or missing worker_id hint"
            )
        return WorkerId(hint) if hint else None


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def is_secret(token: str, secret_hash: str) -> bool:
    """Whether `secret_hash` is the sha256 (hex) of `token`."""
    return hmac.compare_digest(digest(token).hex(), secret_hash)
