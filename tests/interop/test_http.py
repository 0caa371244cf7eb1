"""What holds for every answer under `/_worker`, and HTTP as other programs speak it."""

from tests.interop.conftest import MAX_BODY
from tests.interop.door import WORKER_TOKEN, Door

VERSION = "1.0b2"
REGISTER = "POST /_worker/workers/register HTTP/1.1\r\nHost: here\r\n"
TOKEN = f"X-Worker-Token: {WORKER_TOKEN}\r\n"


async def test_every_answer_to_a_worker_carries_our_version(door: Door) -> None:
    task = await door.held("w1")
    asked: list[tuple[int, str, str, object, str | None]] = [
        (200, "POST", "/_worker/workers/register", {"worker_id": "w2"}, WORKER_TOKEN),
        (200, "PATCH", "/_worker/workers/w1", None, WORKER_TOKEN),
        (200, "PATCH", "/_worker/workers/w1/status", {"load": 1}, WORKER_TOKEN),
        (204, "GET", "/_worker/workers/w1/tasks/next", None, WORKER_TOKEN),
        (400, "POST", "/_worker/workers/register", b"{", WORKER_TOKEN),
        (401, "POST", "/_worker/workers/register", {"worker_id": "w2"}, None),
        (403, "POST", "/_worker/auth/token", None, WORKER_TOKEN),
        (404, "GET", "/_worker/workers/nobody/tasks/next", None, WORKER_TOKEN),
        (404, "GET", "/_worker/no/such/path", None, WORKER_TOKEN),
        (404, "GET", "/_worker/", None, WORKER_TOKEN),
        (405, "DELETE", "/_worker/tasks/result", None, WORKER_TOKEN),
        (413, "POST", "/_worker/tasks/result", b"x" * (MAX_BODY + 1), WORKER_TOKEN),
        (200, "POST", "/_worker/tasks/result", {**task, "worker_id": "w1"}, WORKER_TOKEN),
    ]
    for status, method, path, body, token in asked:
        answer = await door.call(method, path, body, token=token)

        assert (answer.status, answer.headers.get("X-RXON-Version")) == (status, VERSION), path


async def test_a_task_carries_our_version_too(door: Door) -> None:
    await door.register("w1")
    await door.create()

    answer = await door.poll("w1")

    assert (answer.status, answer.headers["X-RXON-Version"]) == (200, VERSION)


async def test_only_answers_to_workers_carry_it(door: Door) -> None:
    for path in ("/_public/status", "/api/v1/workers"):
        assert "X-RXON-Version" not in (await door.call("GET", path)).headers


async def test_a_path_or_method_nobody_serves_is_an_error_like_the_others(door: Door) -> None:
    for method, path, status in (
        ("GET", "/_worker/no/such/path", 404),
        ("POST", "/_worker/workers/register/", 404),
        ("GET", "/_worker/workers/register", 405),
        ("POST", "/_worker/workers/w1/tasks/next", 405),
        ("PUT", "/_worker/workers/w1", 405),
        ("GET", "/_worker/tasks/result", 405),
    ):
        answer = await door.call(method, path)

        assert (answer.status, list(answer.json)) == (status, ["error"]), path


async def test_answers_are_json_and_say_so(door: Door) -> None:
    for answer in (
        await door.call("POST", "/_worker/workers/register", {"worker_id": "w1"}),
        await door.call("PATCH", "/_worker/workers/w1"),
        await door.call("PATCH", "/_worker/workers/nobody"),
    ):
        assert answer.headers["Content-Type"] == "application/json"


async def test_the_type_a_body_claims_to_have_does_not_matter(door: Door) -> None:
    body = b'{"worker_id": "w1"}'
    for claimed in (
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/octet-stream\r\n",
    ):
        head = f"{REGISTER}{TOKEN}{claimed}Content-Length: {len(body)}\r\n\r\n"

        answer = await door.exchange(head.encode() + body)

        assert answer.json["status"] == "registered", claimed


async def test_a_body_may_come_in_chunks(door: Door) -> None:
    head = f"{REGISTER}{TOKEN}Transfer-Encoding: chunked\r\n\r\n"

    answer = await door.exchange(
        head.encode() + b'9\r\n{"worker_\r\na;x=1\r\nid": "w1"}\r\n0\r\n\r\n'
    )

    assert answer.json["status"] == "registered"


async def test_a_body_in_chunks_has_the_same_limit(door: Door) -> None:
    """R43."""
    head = f"{REGISTER}{TOKEN}Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"x" * (MAX_BODY + 1)

    answer = await door.exchange(head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk))

    assert answer.error == (413, f"Request body is larger than {MAX_BODY} bytes.")


async def test_a_body_that_only_claims_to_be_huge_is_refused_all_the_same(door: Door) -> None:
    """R43."""
    body = b'{"worker_id": "w1"'
    head = f"{REGISTER}{TOKEN}Content-Length: {MAX_BODY + 1}\r\n\r\n"

    answer = await door.exchange(head.encode() + body.ljust(MAX_BODY) + b"}")

    assert answer.error == (413, f"Request body is larger than {MAX_BODY} bytes.")


async def test_a_body_of_just_the_limit_is_taken(door: Door) -> None:
    """R43."""
    body = b'{"worker_id": "w1"'.ljust(MAX_BODY - 1) + b"}"

    answer = await door.call("POST", "/_worker/workers/register", body)

    assert answer.json["status"] == "registered"


async def test_after_an_error_the_connection_goes_on(door: Door) -> None:
    async with door.connection() as connection:
        answers = []
        for body in (b"{", b'{"worker_id": "a b"}', b'{"worker_id": "w1"}'):
            head = f"{REGISTER}{TOKEN}Content-Length: {len(body)}\r\n\r\n"
            connection.send(head.encode() + body)
            answers.append((await connection.answer()).status)

    assert answers == [400, 400, 200]


async def test_requests_sent_ahead_are_answered_in_order(door: Door) -> None:
    bodies = [b'{"worker_id": "w1"}', b"{}", b'{"worker_id": "w2"}']
    async with door.connection() as connection:
        for body in bodies:
            head = f"{REGISTER}{TOKEN}Content-Length: {len(body)}\r\n\r\n"
            connection.send(head.encode() + body)

        answers = [(await connection.answer()).status for _ in bodies]

    assert answers == [200, 400, 200]


async def test_http_1_0_is_served_and_closed(door: Door) -> None:
    async with door.connection() as connection:
        connection.send(f"PATCH /_worker/workers/w1 HTTP/1.0\r\n{TOKEN}\r\n".encode())
        answer = await connection.rest()

    assert answer.startswith(b"HTTP/1.0 404")
    assert answer.endswith(b'{"error":"Worker not found"}')


async def test_bytes_that_are_no_http_get_a_400(door: Door) -> None:
    answer = await door.exchange(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")

    assert answer.status == 400
