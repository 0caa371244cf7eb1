"""What a verdict is made of."""

import msgspec


class Violation(msgspec.Struct, frozen=True):
    """A promise that was not kept. `subject`: the job it is about, if it is about one."""

    rule: str
    subject: str
    text: str
