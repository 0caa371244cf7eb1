"""The demo: an embedded engine and two worker processes survey a directory of Python files."""

from avtomatika.demo.run import run_demo

__all__ = ["run_demo"]
