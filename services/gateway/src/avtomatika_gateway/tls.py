"""The certificates of the HTTP door, as the configuration names them."""

import ssl

from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError
from rxon.security import create_server_ssl_context


def server_tls(config: Config) -> ssl.SSLContext | None:
    """None: plain HTTP. Raises StartupError where a file is missing or cannot be used."""
    if not config.TLS_ENABLED:
        return None
    try:
        return create_server_ssl_context(
            config.TLS_CERT_PATH,
            config.TLS_KEY_PATH,
            config.TLS_CA_PATH or None,
            require_client_cert=config.TLS_REQUIRE_CLIENT_CERT,
        )
    except (OSError, ValueError) as error:
        raise StartupError(
            f"TLS cannot be served ({error}):"
            " check TLS_CERT_PATH, TLS_KEY_PATH, TLS_CA_PATH and TLS_REQUIRE_CLIENT_CERT."
        ) from error
