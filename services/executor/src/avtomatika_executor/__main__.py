"""`python -m avtomatika_executor`: an executor of the blueprints the environment names."""

from avtomatika_common.loading import blueprints_of
from avtomatika_common.main import run_service
from avtomatika_executor.service import ExecutorService
from avtomatika_executor.settings import Settings

run_service(
    lambda config, backend: ExecutorService(
        Settings.from_config(config), backend, blueprints_of(config)
    ),
)
