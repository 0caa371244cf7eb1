"""The dispatcher: gives waiting tasks to workers that are ready now."""

from avtomatika_dispatcher.service import DispatcherService
from avtomatika_dispatcher.settings import Settings

__all__ = ["DispatcherService", "Settings"]
