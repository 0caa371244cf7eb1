"""What handlers get."""

from avtomatika_common.actions import ActionFactory
from avtomatika_common.context import JobContext

__all__ = ["ActionFactory", "JobContext"]
