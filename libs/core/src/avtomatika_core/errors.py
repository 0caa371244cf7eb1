"""Errors the core can explain."""


class AvtomatikaError(Exception):
    """Something avtomatika can explain went wrong."""


class IllegalTransition(AvtomatikaError):
    """The event cannot happen to a job like this one; the job is unchanged."""

    def __init__(self, *, status: str, event: str, reason: str) -> None:
        super().__init__(f"{event} cannot happen to a job that is {status!r}: {reason}")
        self.status = status
        self.event = event
