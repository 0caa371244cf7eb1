"""How the event of an inbox entry is shown, whatever it is."""

from typing import Any, cast

import msgspec

from avtomatika_common import codec


def plain_event(packed: bytes) -> dict[str, Any] | None:
    """The event as plain values, whether or not it is one of ours; None: it cannot be decoded."""
    try:
        event: object = codec.unpack(packed)
    except msgspec.MsgspecError:
        return None
    return cast("dict[str, Any]", event) if isinstance(event, dict) else None
