"""The values handlers see."""

from avtomatika_common.context import ClientConfig, JobContext

__all__ = ["ClientConfig", "JobContext"]
