"""Work nobody waits for: what fails in it is told, and hurts nothing else that runs here."""

from collections.abc import Awaitable

from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.logs import get_logger

log = get_logger()


async def unhurried(operation: Awaitable[object]) -> None:
    """Timers of the store mend what fails here: of the board, of holds, credits and sockets."""
    try:
        await operation
    except StoreUnavailable as reason:
        log.warning("store unavailable", reason=str(reason))
    except Exception:
        log.exception("background work failed")
