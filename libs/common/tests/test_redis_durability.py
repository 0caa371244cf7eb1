"""Which settings of a Redis server are too weak for which durability mode."""

import pytest

from avtomatika_common.backend.ports import Durability
from avtomatika_common.backend.redis.durability import shortcomings

STRONG = {
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "always",
    "min-replicas-to-write": "1",
}


@pytest.mark.parametrize("mode", Durability)
def test_a_server_that_is_set_up_for_all_has_no_shortcomings(mode: Durability) -> None:
    assert shortcomings(mode, STRONG, replicas=1) == []


@pytest.mark.parametrize("mode", Durability)
def test_keys_must_never_be_evicted(mode: Durability) -> None:
    weak = STRONG | {"maxmemory-policy": "allkeys-lru"}

    assert shortcomings(mode, weak, replicas=0) == [
        "maxmemory-policy is 'allkeys-lru', set it to 'noeviction'"
    ]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (Durability.FAST, []),
        (Durability.SAFE, ["appendonly is 'no', set it to 'yes'"]),
        (
            Durability.STRICT,
            ["appendonly is 'no', set it to 'yes'", "appendfsync is 'no', set it to 'always'"],
        ),
    ],
)
def test_what_must_outlive_the_server_is_in_its_log(mode: Durability, said: list[str]) -> None:
    weak = STRONG | {"appendonly": "no", "appendfsync": "no"}
    if mode is Durability.SAFE:
        weak["appendfsync"] = "everysec"

    assert shortcomings(mode, weak, replicas=0) == said


def test_a_log_that_is_written_when_the_system_likes_is_not_safe() -> None:
    weak = STRONG | {"appendfsync": "no"}

    assert shortcomings(Durability.SAFE, weak, replicas=0) == [
        "appendfsync is 'no', set it to 'everysec'"
    ]


def test_a_server_with_replicas_must_not_go_on_without_them() -> None:
    weak = STRONG | {"min-replicas-to-write": "0"}

    assert shortcomings(Durability.STRICT, weak, replicas=0) == []
    assert shortcomings(Durability.SAFE, weak, replicas=2) == []
    assert shortcomings(Durability.STRICT, weak, replicas=2) == [
        "min-replicas-to-write is '0' and there are replicas, set it to '2'"
    ]
