"""`avtomatika serve <service>|all` and `avtomatika demo`."""

import argparse
import runpy
import sys
from pathlib import Path

from avtomatika.demo import run_demo
from avtomatika.engine import OrchestratorEngine
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.loading import blueprints_of

SERVICES = (
    "gateway", "executor", "dispatcher", "watcher", "scheduler", "history", "notifier",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="avtomatika", description="Orchestrate jobs and workers.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="run one service as a process, or all in this one")
    serve.add_argument("service", choices=(*SERVICES, "all"))
    demo = verbs.add_parser("demo", help="survey a directory of Python files with two workers")
    demo.add_argument("--directory", default="", help="what to survey (default: Python's library)")
    arguments = parser.parse_args()
    if arguments.verb == "demo":
        sys.exit(run_demo(Path(arguments.directory) if arguments.directory else None))
    if arguments.service == "all":
        sys.exit(_serve_all())
    runpy.run_module(f"avtomatika_{arguments.service}", run_name="__main__", alter_sys=True)


def _serve_all() -> int:
    try:
        config = Config()
        engine = OrchestratorEngine(config=config)
        for blueprint in blueprints_of(config):
            engine.register_blueprint(blueprint)
        config.BLUEPRINTS_DIR = ""  # they are registered already
        engine.run()
    except (StartupError, ValueError) as reason:
        sys.stderr.write(f"avtomatika: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    main()
