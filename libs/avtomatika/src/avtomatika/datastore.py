"""Data stores of blueprints."""

from avtomatika_common.datastore import AsyncDictStore

__all__ = ["AsyncDictStore"]
