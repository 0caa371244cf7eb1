"""What can go wrong on the wire, named by who is at fault and what to do about it."""

from collections.abc import Mapping


class RxonError(Exception):
    """Anything of this package; `details` holds what a log line should carry beside the text."""

    def __init__(self, message: str, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = dict(details or {})


class RxonNetworkError(RxonError):
    """The other side could not be reached or did not answer in time: worth another try."""


class RxonAuthError(RxonError):
    """The other side does not accept our token or certificate."""


class RxonProtocolError(RxonError):
    """The other side answered, but not with what was asked for."""


class RequestRefused(RxonProtocolError):
    """An answer with a status of 400 or more; `details` has `status` and `body` (text)."""

    def __init__(
        self, message: str, *, status: int, body: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message, {"status": status, "body": body})
        self.status = status
        self.retry_after = retry_after
        """Seconds the other side asked us to wait, if it did."""


class S3ConfigMismatchError(RxonProtocolError):
    """The two sides are set up for different S3 buckets."""


class IntegrityError(RxonProtocolError):
    """A file is not the one that was announced: size or etag differ."""


class ParamValidationError(RxonProtocolError):
    """A task's params do not fit what its handler takes."""


class BadMessage(RxonProtocolError):
    """A message that breaks the protocol; its text is meant for the sender (HTTP 400)."""


class InvalidJson(BadMessage):
    def __init__(self) -> None:
        super().__init__("Invalid JSON body")


class NotAnObject(BadMessage):
    def __init__(self) -> None:
        super().__init__("Request body must be a JSON object")


class MissingWorkerId(BadMessage):
    def __init__(self) -> None:
        super().__init__("Missing required field: worker_id")


class MissingTaskIdentity(BadMessage):
    def __init__(self) -> None:
        super().__init__("job_id and task_id are required")


class MissingEventIdentity(BadMessage):
    def __init__(self) -> None:
        super().__init__("event_id and event_type are required")


class InvalidField(BadMessage):
    """A known field holds a value of another type; the text says which and where."""


class InvalidIdentifier(BadMessage, ValueError):
    def __init__(self, *, name: str, value: object) -> None:
        super().__init__(
            f"Invalid {name}: '{value}'. Must be alphanumeric, underscores, or hyphens only."
        )
