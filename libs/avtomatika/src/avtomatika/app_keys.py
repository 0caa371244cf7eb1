"""Keys of the parts of an engine in its aiohttp application: `engine.app[DISPATCHER_KEY]`."""

from typing import TYPE_CHECKING

from aiohttp import ClientSession, web

from avtomatika_dispatcher.service import DispatcherService
from avtomatika_executor.service import ExecutorService
from avtomatika_history.service import HistoryService
from avtomatika_scheduler.service import SchedulerService
from avtomatika_watcher.service import WatcherService

if TYPE_CHECKING:
    from avtomatika.engine import OrchestratorEngine

ENGINE_KEY: "web.AppKey[OrchestratorEngine]" = web.AppKey("engine")
HTTP_SESSION_KEY = web.AppKey("http_session", ClientSession)
DISPATCHER_KEY = web.AppKey("dispatcher", DispatcherService)
EXECUTOR_KEY = web.AppKey("executor", ExecutorService)
WATCHER_KEY = web.AppKey("watcher", WatcherService)
SCHEDULER_KEY = web.AppKey("scheduler", SchedulerService)
HISTORY_KEY = web.AppKey("history", HistoryService)
