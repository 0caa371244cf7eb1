"""This gateway's mail: what others decided about polls and sockets that are open here."""

import asyncio
from typing import Final, assert_never

from avtomatika_common.backend.ports import (
    CloseSocket,
    Mail,
    Mailbox,
    Match,
    StopTask,
    StoreUnavailable,
)
from avtomatika_common.logs import get_logger
from avtomatika_gateway.polls import Polls
from avtomatika_gateway.sockets import Sockets

_BACKOFF_SECONDS: Final = 1.0

log = get_logger()


async def read_mail(gateway: str, mailbox: Mailbox, polls: Polls, sockets: Sockets) -> None:
    """Read it, and have it carried out, until cancelled."""
    position = "0"
    while True:
        try:
            position, letters = await mailbox.read(gateway, position)
        except StoreUnavailable as reason:
            log.warning("mail not read", reason=str(reason))
            await asyncio.sleep(_BACKOFF_SECONDS)
            continue
        except Exception:
            log.exception("mail not read")
            await asyncio.sleep(_BACKOFF_SECONDS)
            continue
        for letter in letters:
            _carry_out(letter, polls, sockets)


def _carry_out(letter: Mail, polls: Polls, sockets: Sockets) -> None:
    match letter:
        case Match():
            polls.matched(letter)
        case StopTask():
            sockets.stop(letter)
        case CloseSocket():
            sockets.close(letter)
        case _:
            assert_never(letter)
