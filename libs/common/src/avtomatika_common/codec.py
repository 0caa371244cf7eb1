"""Bytes: job documents and stream payloads are msgpack, HTTP bodies are JSON, and only here.

User data is JSON on every backend: string keys, and tuples come back as lists.
"""

import json
from typing import Any, Final

import msgspec
import orjson

from avtomatika_core.events import InboxEvent
from avtomatika_core.job import Branch, BranchResult, Head, JobData, Origin
from avtomatika_core.schedule import Schedule, Standing
from avtomatika_core.signals import NO_SIGNALS, Signals

_encoder: Final = msgspec.msgpack.Encoder()
pack: Final = _encoder.encode
"""Any of our values, or user data that passed `is_json`, as msgpack."""

unpack: Final = msgspec.msgpack.Decoder().decode
unpack_head: Final = msgspec.msgpack.Decoder(Head).decode
unpack_origin: Final = msgspec.msgpack.Decoder(Origin).decode
unpack_data: Final = msgspec.msgpack.Decoder(JobData).decode
unpack_branch: Final = msgspec.msgpack.Decoder(Branch).decode
unpack_branch_result: Final = msgspec.msgpack.Decoder(BranchResult).decode
unpack_schedule: Final = msgspec.msgpack.Decoder(Schedule).decode
unpack_standing: Final = msgspec.msgpack.Decoder(Standing).decode
_unpack_signals: Final = msgspec.msgpack.Decoder(Signals).decode
unpack_event: Final = msgspec.msgpack.Decoder(InboxEvent).decode

EMPTY_DATA: Final = pack(JobData())

_JSON_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


DEEPEST: Final = 200
"""Levels a value from outside or from a handler may have: what it is written in has some more."""
_CONTAINERS: Final = 4
"""Levels that are checked together with it."""
_ENCODERS_DEEPEST: Final = 254


class NotJson(TypeError):
    """The data holds something JSON cannot carry."""


def check_json(value: object) -> None:
    """Raises NotJson for what msgpack carries and JSON does not: bytes, sets, dates, NaN, numeric keys."""
    try:
        encoded = orjson.dumps(value, option=_JSON_OPTIONS)
        if is_too_deep(encoded, value, DEEPEST + _CONTAINERS):
            raise NotJson(f"a value nested over {DEEPEST} deep")
        if b"null" in encoded:  # orjson writes NaN and Infinity so; the slower encoder refuses them
            json.dumps(value, allow_nan=False, default=str)
    except (TypeError, ValueError) as error:
        raise NotJson(str(error)) from error


def is_too_deep(encoded: bytes, value: object, deepest: int) -> bool:
    """Whether `value`, as JSON `encoded`, has more levels than `deepest`."""
    if encoded.count(b"[") + encoded.count(b"{") <= deepest:
        return False
    for _ in range(_ENCODERS_DEEPEST - deepest):
        value = [value]
    try:
        orjson.dumps(value, option=_JSON_OPTIONS)
    except TypeError:
        return True
    return False


def pack_data(data: JobData) -> bytes:
    """`data` as it is stored. Raises NotJson."""
    parts = (data.state_history, data.initial_data, data.data_metadata)
    check_json([part for part in parts if part is not None])
    try:
        return pack(data)
    except (TypeError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise NotJson(str(error)) from error


def json_bytes(value: Any) -> bytes:
    """`value` as a JSON body."""
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value)
    return orjson.dumps(value, default=msgspec.to_builtins)


parse_json: Final = orjson.loads


def unpack_signals(packed: bytes | None) -> Signals:
    """None, empty: the job never had any."""
    return _unpack_signals(packed) if packed else NO_SIGNALS


def as_json(value: Any) -> Any:
    """`value` as plain JSON values: what a client would read."""
    return parse_json(json_bytes(value))
