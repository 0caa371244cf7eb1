"""Tracebacks that begin where the user's own code does."""

from pathlib import Path
from types import TracebackType
from typing import Final

import rxon

_OURS: Final = tuple(str(Path(file).parent) for file in (__file__, rxon.__file__))
_NOBODYS: Final = "importlib"


def of_user(traceback: TracebackType | None) -> TracebackType | None:
    """The part from the first frame of the user's on; None: there is none."""
    while traceback is not None and not _is_users(traceback):
        traceback = traceback.tb_next
    return traceback


def complaint(error: Exception) -> str | None:
    """The error as one line with its place, if it is one of ours about a line of the user's."""
    place, innermost, rest = "", error.__traceback__, error.__traceback__
    while rest is not None:
        if _is_users(rest):
            place = f"{rest.tb_frame.f_code.co_filename}, line {rest.tb_lineno}: "
        innermost, rest = rest, rest.tb_next
    if innermost is None or not place or not _is_ours(innermost):
        return None
    return f"{place}{error}"


def _is_users(traceback: TracebackType) -> bool:
    return not _is_ours(traceback) and _NOBODYS not in traceback.tb_frame.f_code.co_filename


def _is_ours(traceback: TracebackType) -> bool:
    return traceback.tb_frame.f_code.co_filename.startswith(_OURS)
