"""The executor: runs blueprint handlers, applies events to jobs, commits what follows."""

from avtomatika_executor.service import ExecutorService
from avtomatika_executor.settings import Settings

__all__ = ["ExecutorService", "Settings"]
