"""Write docs/configuration.md from the settings as they are declared."""

from pathlib import Path

from avtomatika.config import Config
from avtomatika_common.config import SettingRow

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

WITHOUT_EFFECT_YET = frozenset(
    {
        "CLIENTS_CONFIG_PATH",
        "ENABLE_DEBUG_API",
        "ENVIRONMENT",
        "HISTORY_RETENTION_DAYS",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_SERVICE_NAME",
        "RATE_LIMITING_ENABLED",
        "RATE_LIMIT_HEARTBEAT_LIMIT",
        "RATE_LIMIT_LIMIT",
        "RATE_LIMIT_PERIOD",
        "RATE_LIMIT_POLL_LIMIT",
        "S3_ACCESS_KEY",
        "S3_DEFAULT_BUCKET",
        "S3_ENDPOINT_URL",
        "S3_MAX_CONCURRENCY",
        "S3_REGION",
        "S3_SECRET_KEY",
        "TASK_FILES_DIR",
        "WEBHOOK_ALLOW_PRIVATE_HOSTS",
        "WEBHOOK_SECRET",
        "WORKERS_CONFIG_PATH",
    }
)
"""Read and checked, but nothing acts on them so far."""

INTRODUCTION = """\
# Configuration

The orchestrator is configured by environment variables. `Config()` reads them; in your own
application its attributes have the same names and may be assigned until the engine starts:

```python
from avtomatika.config import Config

config = Config()
config.API_PORT = 9000
config.JOB_MAX_RETRIES = 5
```

A value that cannot be right is refused at the start, by name. Booleans are `true` or `false`,
in any case. Workers have [settings of their own](workers.md#settings).

* `REDIS_URL` goes before `REDIS_HOST`, `REDIS_PORT` and `REDIS_DB`. An engine made without a storage
  takes Redis when one of them is set, else memory; a service process with neither takes
  `localhost:6379`.
* Behind Sentinel it is `redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0`, where the
  user, the port and the database may be left out; `rediss+sentinel://` takes TLS to the servers and the
  Sentinels. Behind `?` come `sentinel_username` and `sentinel_password`, which are those of the
  Sentinels, and options of redis-py. What happens in a fail-over: [Operations](operations.md#sentinel).
* `AVTOMATIKA_BLUEPRINTS` names modules (every blueprint in them) or `module:attribute` (a blueprint, or
  a list of them); what cannot be imported stops the start. In `BLUEPRINTS_DIR` a bad file is logged
  and the others are loaded.
* `HISTORY_DATABASE_URI` is `sqlite:<path>`; another scheme stops the start in this version.
* In `SCHEDULES_CONFIG_PATH` every table is a [schedule](schedules.md).

This page is written by `scripts/write_configuration.py`.
"""

AFTERWORD = """
## Accepted, without effect yet

These are read and checked, so that a deployment can set them already; nothing acts on them in this
version.
"""


def page() -> str:
    """The whole page, as it has to be for the settings as they are."""
    rows = Config.describe()
    working = [row for row in rows if row.name not in WITHOUT_EFFECT_YET]
    waiting = [row for row in rows if row.name in WITHOUT_EFFECT_YET]
    return "\n".join(
        [INTRODUCTION, "## Settings", *_table(working), AFTERWORD, *_table(waiting), ""]
    )


def _table(rows: list[SettingRow]) -> list[str]:
    return [
        "",
        "| Variable | Default | Unit | Meaning |",
        "|---|---|---|---|",
        *(_line(row) for row in rows),
    ]


def _line(row: SettingRow) -> str:
    default = f"`{row.default}`" if row.default else ""
    return f"| `{row.name}` | {default} | {row.unit} | {row.sentence} |"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
