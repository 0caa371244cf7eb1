"""TLS on both ends, and who the peer is by its certificate."""

import ssl
from typing import Any

from aiohttp import web


def create_server_ssl_context(
    cert_path: str,
    key_path: str,
    ca_path: str | None = None,
    *,
    require_client_cert: bool = False,
) -> ssl.SSLContext:
    """A server that shows the given chain.

    With `ca_path` it checks the certificates of clients that have one; `require_client_cert`
    refuses those that have none, and needs a `ca_path` (ValueError without).
    """
    if require_client_cert and not ca_path:
        raise ValueError("A client certificate can only be required with a CA to check it by.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_path or None)
    context.load_cert_chain(cert_path, key_path)
    if ca_path:
        context.verify_mode = ssl.CERT_REQUIRED if require_client_cert else ssl.CERT_OPTIONAL
    return context


def create_client_ssl_context(
    ca_path: str | None = None,
    cert_path: str | None = None,
    key_path: str | None = None,
) -> ssl.SSLContext:
    """A client that trusts `ca_path` (the system's CAs without it) and shows its certificate."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_path or None)
    if cert_path:
        context.load_cert_chain(cert_path, key_path or None)
    return context


def extract_cert_identity(request: web.BaseRequest) -> str | None:
    """The subject's common name of the client certificate behind `request`, if there is one.

    Only what TLS has verified counts, so this is an identity and not a claim.
    """
    if request.transport is None:
        return None
    certificate: dict[str, Any] = request.transport.get_extra_info("peercert") or {}
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return None
