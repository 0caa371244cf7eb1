"""The servers that other tests stand on."""

from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.servers import ServerFailed, redis_answers, redis_binaries, running_redis

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_with_an_empty_redis(redis_url: str, turn: int) -> None:
    port = urlsplit(redis_url).port or 0

    assert redis_answers(port, "DBSIZE", ":0")
    assert redis_answers(port, f"SET left behind-{turn}", "+OK")


async def test_a_postgres_test_has_a_database(postgres_server: str) -> None:
    connection = await asyncpg.connect(postgres_server)

    version = await connection.fetchval("SHOW server_version_num")
    await connection.close()

    assert int(version) >= 150000


def test_a_server_that_does_not_start_says_why() -> None:
    binary: Path = next(iter(redis_binaries().values()))

    with pytest.raises(ServerFailed, match="unheard-of"), running_redis(binary, "--unheard-of"):
        pass
