"""Why a request is not carried out, where no port says it already."""

from avtomatika_core.errors import AvtomatikaError


class BadRequest(AvtomatikaError):
    """The request cannot be understood; the text says what is wrong with it."""


class Unauthenticated(AvtomatikaError):
    """Nobody we know is asking."""


class Forbidden(AvtomatikaError):
    """Whoever is asking may not do this."""


class Conflict(AvtomatikaError):
    """It came too late: what it is about has changed meanwhile; the text says how."""


class NotFound(AvtomatikaError):
    """There is no such thing, or it is not for the one who asks."""


class BodyTooLarge(AvtomatikaError):
    """More bytes than one request may have."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"Request body is larger than {limit} bytes.")
