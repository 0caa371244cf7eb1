"""`python -m avtomatika_notifier`: a notifier of its own."""

from avtomatika_common.main import run_service
from avtomatika_notifier.service import NotifierService
from avtomatika_notifier.settings import Settings

run_service(lambda config, backend: NotifierService(Settings.from_config(config), backend))
