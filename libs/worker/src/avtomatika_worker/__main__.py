"""`worker run --app module:attribute`, also as `python -m avtomatika_worker`."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from avtomatika_worker.config import InvalidSetting
from avtomatika_worker.reload import ReloadUnavailable, run_with_reload
from avtomatika_worker.tracebacks import complaint, of_user
from avtomatika_worker.worker import Worker


class NoSuchWorker(Exception):
    """What `--app` names cannot be run; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker that the command line names; the exit code of the process."""
    parser = argparse.ArgumentParser(prog="worker", description="Avtomatika worker.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a worker until SIGINT or SIGTERM")
    run.add_argument("--app", required=True, metavar="MODULE:ATTRIBUTE", help="the Worker to run")
    run.add_argument(
        "--health-check", action="store_true", help="answer GET /health on WORKER_PORT"
    )
    run.add_argument(
        "--reload", action="store_true", help="start anew when a Python file here changes"
    )
    given = parser.parse_args(arguments)
    app: str = given.app
    health_check: bool = given.health_check
    if given.reload:
        try:
            run_with_reload(["--app", app, *(["--health-check"] if health_check else [])])
        except ReloadUnavailable as error:
            return _refuse(error)
        return 0
    try:
        worker = load(app)
    except NoSuchWorker as error:
        return _refuse(error)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything
        traceback.print_exception(error.with_traceback(of_user(error.__traceback__)))
        return _refuse(f"Module '{app.partition(':')[0]}' cannot be imported.")
    try:
        worker.config.validate()
    except ValueError as error:
        return _refuse(error)
    try:
        if health_check:
            worker.run_with_health_check()
        else:
            worker.run()
    except InvalidSetting as error:
        return _refuse(error)
    return 0


def load(app: str) -> Worker:
    """Import `module:attribute`, the current directory included. Raises `NoSuchWorker`."""
    module_name, separator, attribute = app.partition(":")
    if not (module_name and separator and attribute):
        raise NoSuchWorker(f"--app must be module:attribute, not '{app}'.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise  # a module of the user's misses something: the traceback says what and where
        raise NoSuchWorker(
            f"There is no module '{module_name}' in {here}, nor an installed one."
        ) from error
    except InvalidSetting as error:
        raise NoSuchWorker(str(error)) from error
    except (TypeError, ValueError) as error:
        if (found := complaint(error)) is None:
            raise
        raise NoSuchWorker(found) from error
    worker = getattr(module, attribute, None)
    if not isinstance(worker, Worker):
        raise NoSuchWorker(f"'{attribute}' in module '{module_name}' is not a Worker.")
    return worker


def _refuse(error: Exception | str) -> int:
    print(f"worker: {error}", file=sys.stderr)  # noqa: T201 - a line for whoever typed it
    return 2


if __name__ == "__main__":
    sys.exit(main())
