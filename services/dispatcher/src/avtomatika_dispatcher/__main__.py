"""`python -m avtomatika_dispatcher`."""

from avtomatika_common.main import run_service
from avtomatika_dispatcher.service import DispatcherService
from avtomatika_dispatcher.settings import Settings

run_service(lambda config, backend: DispatcherService(Settings.from_config(config), backend))
