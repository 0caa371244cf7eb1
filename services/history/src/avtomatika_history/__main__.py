"""`python -m avtomatika_history`: the archive as a process of its own."""

from avtomatika_common.main import run_service
from avtomatika_history.service import HistoryService
from avtomatika_history.settings import Settings

run_service(lambda config, backend: HistoryService(Settings.from_config(config), backend))
