from types import SimpleNamespace

import pytest

from avtomatika_common.datastore import AsyncDictStore


class FakeKeyValues:
    def __init__(self) -> None:
        self.values: dict[tuple[str, str], bytes] = {}

    async def get(self, namespace: str, key: str) -> bytes | None:
        return self.values.get((namespace, key))

    async def set(self, namespace: str, key: str, value: bytes) -> None:
        self.values[namespace, key] = value


def bound(values: FakeKeyValues, namespace: str = "flow/cache") -> AsyncDictStore:
    store = AsyncDictStore({"given": 1})
    store.bind(values, namespace)
    return store


async def test_the_given_dict_answers_for_keys_never_set() -> None:
    for store in (AsyncDictStore({"given": 1}), bound(FakeKeyValues())):
        assert await store.get("given") == 1
        assert await store.get("absent") is None


async def test_before_it_is_bound_a_store_keeps_values_to_itself() -> None:
    initial = {"given": 1}
    store = AsyncDictStore(initial)

    await store.set("given", (1, 2))

    assert await store.get("given") == [1, 2]
    assert initial == {"given": 1}


async def test_bound_stores_share_values() -> None:  # R59
    values = FakeKeyValues()
    ours, theirs = bound(values), bound(values)

    await ours.set("given", {"n": [None, True]})

    assert await theirs.get("given") == {"n": [None, True]}
    assert await bound(values, "other/cache").get("given") == 1


async def test_a_value_set_to_none_hides_the_given_one() -> None:
    store = bound(FakeKeyValues())

    await store.set("given", None)

    assert await store.get("given") is None


@pytest.mark.parametrize("store", [AsyncDictStore({}), bound(FakeKeyValues())])
async def test_a_value_that_is_no_json_is_refused(store: AsyncDictStore) -> None:
    with pytest.raises(TypeError, match=r"cannot keep k\.a as SimpleNamespace"):
        await store.set("k", {"a": SimpleNamespace()})
