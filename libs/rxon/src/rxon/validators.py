"""What may stand as the id of a worker or the name of a task."""

import re
from typing import Final

from rxon.exceptions import InvalidIdentifier

_IDENTIFIER: Final = re.compile(r"[a-zA-Z0-9_-]+")


def is_valid_identifier(value: object) -> bool:
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def validate_identifier(value: object, name: str) -> None:
    """Raise `InvalidIdentifier` (a ValueError) that calls the value by `name`."""
    if not is_valid_identifier(value):
        raise InvalidIdentifier(name=name, value=value)
