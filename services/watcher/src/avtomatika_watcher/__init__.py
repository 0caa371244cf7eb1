"""The watcher: notices what did not happen in time, and clears away what is dead."""

from avtomatika_watcher.service import WatcherService
from avtomatika_watcher.settings import Settings

__all__ = ["Settings", "WatcherService"]
