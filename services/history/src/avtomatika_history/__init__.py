"""The archive: facts from the streams into a database, in batches."""

from avtomatika_history.service import HistoryService
from avtomatika_history.settings import Settings

__all__ = ["HistoryService", "Settings"]
