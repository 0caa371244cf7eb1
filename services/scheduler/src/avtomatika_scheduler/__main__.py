"""`python -m avtomatika_scheduler`."""

from avtomatika_common.main import run_service
from avtomatika_scheduler.service import SchedulerService
from avtomatika_scheduler.settings import Settings

run_service(lambda config, backend: SchedulerService(Settings.from_config(config), backend))
