"""The Python in the documentation."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

_BLOCK = re.compile(
    r"^(?:<!-- (?P<file>\S+) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def python_blocks(page: Path) -> list[tuple[str | None, str]]:
    """Every fenced block: the file that the comment above it names, and the code."""
    return [(found["file"], found["code"]) for found in _BLOCK.finditer(page.read_text())]


def module_of(page: Path, directory: Path) -> ModuleType:
    """The blocks of a page run one after the other, as one module; its file lies in `directory`."""
    path = directory / f"page_{page.stem}.py"
    path.write_text("\n".join(code for _, code in python_blocks(page)))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
