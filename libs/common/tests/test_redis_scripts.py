"""What the scripts say of themselves."""

from importlib.resources import files

LUA = files("avtomatika_common.backend.redis") / "lua"


def test_a_full_redis_refuses_only_what_brings_new_work() -> None:
    headers = {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8").partition("\n")[0]
        for file in LUA.iterdir()
        if file.name.endswith(".lua")
    }

    assert {name for name, header in headers.items() if header == "#!lua"} == {
        "create_job",
        "redrive_job",
    }
