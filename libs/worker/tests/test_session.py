"""What a worker decides: whom it asks for how many tasks, how long it waits, what it sends again."""

import pytest

from avtomatika_worker.orchestrators import Orchestrator
from avtomatika_worker.session import Ask, Drop, Park, Repeat, Rhythm, Session
from rxon import RxonError, RxonNetworkError, RxonProtocolError
from rxon.exceptions import RequestRefused, RxonAuthError

AWAY = RxonNetworkError("away")


def refused(status: int, retry_after: float | None = None) -> RequestRefused:
    return RequestRefused("refused", status=status, body="", retry_after=retry_after)


def a_session(
    *weights: int,
    places: int = 4,
    in_turn: bool = False,
    one_by_one: bool = False,
    draw: float = 0.5,
    known: bool = True,
) -> Session:
    """Its orchestrators are known to us; chance draws `draw` each time."""
    session = Session(
        [Orchestrator(url=f"o{n}", weight=weight) for n, weight in enumerate(weights or (1,))],
        places=places,
        rhythm=Rhythm(
            heartbeat_seconds=15, pause_seconds=5, result_pause_seconds=1, result_retries=2
        ),
        in_turn=in_turn,
        one_by_one=one_by_one,
        draw=lambda: draw,
    )
    for peer in session.peers:
        if known:
            session.registered(peer)
    return session


def asked(session: Session, now: float = 0.0, taken: int = 0) -> str | None:
    ask = session.next_poll(now, taken)
    return None if ask is None else ask.peer.orchestrator.url


def opened(session: Session, taken: int = 0) -> Ask | None:
    """The next poll, which is open from now on."""
    ask = session.next_poll(0.0, taken)
    if ask is not None:
        session.poll_began(ask)
    return ask


def test_a_worker_asks_for_as_many_tasks_as_it_has_places() -> None:
    session = a_session(places=4)

    assert session.next_poll(0.0, taken=1) == Ask(session.peers[0], 3)


def test_where_what_may_come_depends_on_what_runs_tasks_come_one_by_one() -> None:
    session = a_session(places=4, one_by_one=True)

    assert session.next_poll(0.0, taken=1) == Ask(session.peers[0], 1)
    assert session.most_with_results(session.peers[0], 0.0, taken=1) == 0


def test_a_worker_that_is_full_asks_for_nothing() -> None:
    session = a_session(places=2)

    assert session.next_poll(0.0, taken=2) is None
    assert session.next_poll(0.0, taken=3) is None


def test_a_place_is_asked_for_once() -> None:
    session = a_session(places=2)
    session.asked = 1

    assert session.next_poll(0.0, taken=0) == Ask(session.peers[0], 1)
    assert session.next_poll(0.0, taken=1) is None


def test_nobody_is_asked_before_we_are_registered() -> None:
    assert asked(a_session(known=False)) is None


def test_a_worker_that_drains_asks_for_nothing() -> None:
    session = a_session()
    session.draining = True

    assert asked(session) is None
    assert session.most_with_results(session.peers[0], 0.0, taken=0) == 0


def test_the_second_is_asked_while_the_first_rests() -> None:
    session = a_session(1, 1)
    first, _ = session.peers

    session.poll_failed(first, AWAY, now=100.0)

    assert asked(session, now=104.9) == "o1"
    assert session.first_rest_ends_at(100.0) == 105.0
    assert asked(session, now=105.0) == "o0"


def test_in_turn_everybody_is_asked_by_weight() -> None:
    session = a_session(2, 1, in_turn=True)

    assert [asked(session) for _ in range(6)] == ["o0", "o1", "o0", "o0", "o1", "o0"]


def test_in_turn_each_has_a_poll_of_its_own_for_its_share_of_the_places() -> None:
    session = a_session(2, 1, places=6, in_turn=True)
    first, second = session.peers

    asks = [opened(session) for _ in range(3)]

    assert asks == [Ask(first, 4), Ask(second, 2), None]


def test_who_brought_nothing_is_asked_for_one_task_only() -> None:
    session = a_session(1, 1, places=6, in_turn=True)
    first, second = session.peers
    for brought in (0, 3):
        ask = opened(session)
        assert ask is not None
        session.poll_ended(ask, brought)

    assert [opened(session), opened(session)] == [Ask(first, 1), Ask(second, 5)]


def test_who_is_alone_is_asked_for_all_whatever_it_brought() -> None:
    session = a_session(places=6, in_turn=True)
    ask = opened(session)
    assert ask is not None
    session.poll_ended(ask, 0)

    assert opened(session) == Ask(session.peers[0], 6)


def test_who_has_not_registered_us_yet_keeps_its_share() -> None:
    session = a_session(1, 1, places=6, in_turn=True, known=False)
    first, second = session.peers
    session.registered(first)

    assert opened(session) == Ask(first, 3)
    session.registered(second)
    assert opened(session) == Ask(second, 3)


def test_who_does_not_answer_has_no_share() -> None:
    session = a_session(1, 1, places=6, in_turn=True)
    first, second = session.peers
    session.poll_failed(second, AWAY, now=0.0)

    assert opened(session) == Ask(first, 6)


def test_who_hands_out_one_task_at_a_time_is_asked_for_one() -> None:
    session = a_session(1, 1, places=6, in_turn=True)
    first, second = session.peers
    first.knows_batches = False

    assert [opened(session), opened(session)] == [Ask(first, 1), Ask(second, 5)]


def test_with_fewer_places_than_orchestrators_one_waits_for_the_other() -> None:
    session = a_session(1, 1, places=1, in_turn=True)
    first, second = session.peers

    ask = opened(session)
    assert (ask, opened(session)) == (Ask(first, 1), None)
    assert ask is not None
    session.poll_ended(ask, 0)

    assert opened(session) == Ask(second, 1)


def test_where_one_goes_first_one_poll_is_open_at_a_time() -> None:
    session = a_session(1, 1, places=6)
    ask = opened(session)
    assert ask is not None

    assert session.next_poll(0.0, taken=0) is None
    session.poll_ended(ask, None)
    assert session.next_poll(0.0, taken=0) == ask


def test_tasks_come_back_with_results_for_the_places_these_leave() -> None:
    session = a_session(places=4)
    session.asked = 1

    assert session.most_with_results(session.peers[0], 0.0, taken=2) == 1


def test_results_bring_no_tasks_past_the_orchestrator_that_goes_first() -> None:
    session = a_session(1, 1)
    first, second = session.peers

    assert session.most_with_results(second, 0.0, taken=0) == 0

    session.poll_failed(first, AWAY, now=0.0)
    assert session.most_with_results(second, 1.0, taken=0) == 4


def test_results_bring_no_tasks_where_several_take_turns() -> None:
    session = a_session(1, 1, in_turn=True)

    assert session.most_with_results(session.peers[0], 0.0, taken=0) == 0


def test_a_pause_doubles_up_to_the_time_between_heartbeats() -> None:
    session = a_session()

    pauses = [session.failed(session.peers[0], AWAY) for _ in range(20)]

    assert pauses[:3] == [5, 10, 15]
    assert pauses[-1] == 15


def test_an_answer_ends_the_doubling() -> None:
    session = a_session()
    peer = session.peers[0]
    session.failed(peer, AWAY)

    session.heard(peer)

    assert session.failed(peer, AWAY) == 5


@pytest.mark.parametrize(("draw", "pause"), [(0.0, 4.0), (1.0, 6.0)])
def test_chance_moves_a_pause_by_a_fifth(draw: float, pause: float) -> None:
    session = a_session(draw=draw)

    assert session.failed(session.peers[0], AWAY) == pytest.approx(pause)


@pytest.mark.parametrize(("draw", "pause"), [(0.0, 7.0), (1.0, 8.4)])
def test_a_pause_that_was_asked_for_is_never_cut_short(draw: float, pause: float) -> None:
    session = a_session(draw=draw)

    assert session.failed(session.peers[0], refused(429, retry_after=7)) == pytest.approx(pause)


@pytest.mark.parametrize(("draw", "pause"), [(0.0, 15.0), (1.0, 12.0)])
def test_a_heartbeat_never_comes_later_than_its_interval(draw: float, pause: float) -> None:
    assert a_session(draw=draw).seconds_to_next_beat() == pytest.approx(pause)


def test_a_worker_that_is_not_known_any_more_registers_at_once() -> None:
    """R38."""
    session = a_session()
    peer = session.peers[0]

    pause = session.failed(peer, refused(404))

    assert (pause, peer.registered, asked(session)) == (0.0, False, None)


def test_a_registration_that_finds_nobody_is_not_repeated_at_once() -> None:
    session = a_session(known=False)

    assert session.failed(session.peers[0], refused(404)) == 5


@pytest.mark.parametrize("status", [404, 405])
def test_an_orchestrator_without_batches_is_never_sent_another(status: int) -> None:
    session = a_session()
    peer = session.peers[0]

    assert session.batch_failed(peer, refused(status))
    assert not peer.knows_batches
    assert peer.registered


@pytest.mark.parametrize(
    ("error", "one_by_one"), [(refused(413), True), (refused(503), False), (AWAY, False)]
)
def test_a_batch_that_is_refused_as_a_whole_is_sent_one_by_one(
    error: RxonError, one_by_one: bool
) -> None:
    session = a_session()

    assert session.batch_failed(session.peers[0], error) is one_by_one
    assert session.peers[0].knows_batches


@pytest.mark.parametrize(
    ("error", "attempt", "verdict"),
    [
        (AWAY, 1, Repeat(1.1)),
        (refused(500), 2, Repeat(2.2)),
        (refused(503), 3, Park()),
        (refused(429, retry_after=10), 1, Repeat(11.0)),
        (refused(429), 1, Repeat(1.1)),
        (RxonAuthError("no"), 1, Repeat(1.1)),
        (RxonProtocolError("<html>"), 1, Repeat(1.1)),
        (refused(400), 1, Drop()),
        (refused(403), 1, Drop()),
        (refused(404), 1, Drop()),
    ],
)
def test_a_result_is_sent_again_where_that_can_help(
    error: RxonError, attempt: int, verdict: Repeat | Park | Drop
) -> None:
    assert a_session().result_failed(error, attempt) == verdict
