"""`python -m avtomatika_watcher`."""

from avtomatika_common.main import run_service
from avtomatika_watcher.service import WatcherService
from avtomatika_watcher.settings import Settings

run_service(lambda config, backend: WatcherService(Settings.from_config(config), backend))
