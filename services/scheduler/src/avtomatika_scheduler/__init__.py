"""The scheduler: makes the jobs of schedules.toml when they are due, each once."""

from avtomatika_scheduler.service import InvalidSchedules, SchedulerService
from avtomatika_scheduler.settings import Settings

__all__ = ["InvalidSchedules", "SchedulerService", "Settings"]
