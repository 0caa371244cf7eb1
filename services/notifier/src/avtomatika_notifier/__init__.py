"""The notifier: delivers webhooks, isolated from everything else."""

from avtomatika_notifier.service import NotifierService
from avtomatika_notifier.settings import Settings

__all__ = ["NotifierService", "Settings"]
