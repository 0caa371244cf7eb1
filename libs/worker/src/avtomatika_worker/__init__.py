"""The SDK for workers: register functions as tasks, and run them for an orchestrator."""

from importlib.metadata import version

from avtomatika_worker.logs import setup_logging
from avtomatika_worker.task_files import TaskFiles
from avtomatika_worker.worker import Worker

__version__ = version("avtomatika")

__all__ = ["TaskFiles", "Worker", "__version__", "setup_logging"]
