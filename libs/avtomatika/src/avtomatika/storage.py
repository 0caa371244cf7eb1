"""Where jobs, queues and workers are kept."""

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import StorageBackend

__all__ = ["MemoryStorage", "StorageBackend"]

try:
    from avtomatika_common.backend.redis.storage import RedisStorage
except ModuleNotFoundError as missing:
    if missing.name not in {"redis", "hiredis"}:
        raise
else:
    __all__ += ["RedisStorage"]
