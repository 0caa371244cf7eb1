"""The Lua scripts: one file, one atomic operation. Each reads `lua/<verb_noun>.lua` once."""

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Final

_LUA: Final = files("avtomatika_common.backend.redis") / "lua"
_INCLUDE: Final = re.compile(r"^--@include (\w+)$", re.MULTILINE)


class Script:
    """A script's source and the name Redis knows it by."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str) -> None:
        text = (_LUA / f"{name}.lua").read_text(encoding="utf-8")
        self.name = name
        self.source = _INCLUDE.sub(
            lambda include: (_LUA / f"{include[1]}.lua").read_text(encoding="utf-8"), text
        )
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest().encode()


@cache
def script(name: str) -> Script:
    return Script(name)
