"""From a message to plain JSON types."""

import msgspec


def to_dict(message: object) -> dict[str, object]:
    """The object that goes over the wire: empty fields are None, unset ones are left out."""
    plain: dict[str, object] = msgspec.to_builtins(message)
    return plain
