"""The one place that draws ids, and the partition that stands in the last digits of one."""

import hashlib
import os
from itertools import count

_DRAWN_AT_ONCE = 64
PLACES = 1 << 16  # the low 16 bits of an id: its last four hexadecimal digits


_process = os.urandom(8).hex()
_counter = count()
_drawn: list[str] = []
"""Random digits not used yet: asking the system once for many ids costs as much as for one."""


def new_id() -> str:
    """A random UUID, version 4."""
    if not _drawn:
        digits = os.urandom(16 * _DRAWN_AT_ONCE).hex()
        _drawn.extend(digits[start : start + 32] for start in range(0, len(digits), 32))
    return _as_uuid(_drawn.pop(), "4")


def new_nonce() -> str:
    """A text no other call in any process returns; cheaper than an id, and no secret."""
    return f"{_process}{next(_counter):x}"


def _begin_anew() -> None:
    global _process  # noqa: PLW0603 - a forked child must not repeat its parent
    _process = os.urandom(8).hex()
    _drawn.clear()


os.register_at_fork(after_in_child=_begin_anew)


def derived_id(*parts: str) -> str:
    """The UUID (version 8) that always belongs to `parts`: what is made twice has one id."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:" % len(encoded) + encoded)
    return _as_uuid(digest.hexdigest(), "8")


def new_id_in_partition(partition: int, partitions: int) -> str:
    """A random UUID whose low 16 bits, modulo `partitions`, are `partition`."""
    assert 0 <= partition < partitions <= PLACES
    drawn = new_id()
    if partitions == 1:
        return drawn
    place = int(drawn[-4:], 16)
    place += partition - place % partitions
    return f"{drawn[:-4]}{place if place < PLACES else place - partitions:04x}"


def partition_of(job_id: str, partitions: int) -> int:
    """The partition of `job_id`; 0 for a text that is no id, which is found in none anyway."""
    if partitions == 1:
        return 0
    try:
        return int(job_id[-4:], 16) % partitions
    except ValueError:
        return 0


def partition_of_key(client: str, key: str, partitions: int) -> int:
    """Where an idempotency key is known: the job that it makes is of this partition."""
    return partition_of(derived_id(client, key), partitions)


def _as_uuid(digits: str, version: str) -> str:
    """32 random hexadecimal digits as a UUID of that version, RFC 9562 variant."""
    variant = "89ab"[int(digits[16], 16) & 3]
    return (
        f"{digits[:8]}-{digits[8:12]}-{version}{digits[13:16]}"
        f"-{variant}{digits[17:20]}-{digits[20:]}"
    )
