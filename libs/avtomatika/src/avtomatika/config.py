"""The settings of the orchestrator."""

from avtomatika_common.config import Config

__all__ = ["Config"]
