"""`python -m avtomatika_gateway`: the gateway as a process of its own."""

from avtomatika_common.backend.ports import Backend
from avtomatika_common.config import Config
from avtomatika_common.history import history_reader
from avtomatika_common.main import run_service
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.tls import server_tls


def make(config: Config, backend: Backend) -> GatewayService:
    history = history_reader(config.history_uri(), config.timezone())
    return GatewayService(Settings.from_config(config), backend, history, server_tls(config))


if __name__ == "__main__":
    run_service(make)
