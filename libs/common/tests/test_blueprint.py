import asyncio
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avtomatika_common import actions as actions_module
from avtomatika_common import aliases, blueprint
from avtomatika_common.actions import ActionFactory
from avtomatika_common.aliases import Blueprint
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import ClientConfig, JobContext
from avtomatika_common.datastore import AsyncDictStore
from avtomatika_common.definitions import DefinitionError
from avtomatika_core.outcomes import EndOutcome
from avtomatika_core.retry_policy import RetryPolicy

NEXT = "end"


@pytest.fixture
def bp() -> StateMachineBlueprint:
    return StateMachineBlueprint("flow", api_endpoint="/jobs/flow", api_version="v1")


def context(state: str = "start", **more: Any) -> JobContext:
    return JobContext(
        job_id="job-1",
        current_state=state,
        initial_data=more.pop("initial_data", {}),
        state_history={},
        client=ClientConfig(token=""),
        actions=ActionFactory("job-1"),
        **more,
    )


def nothing() -> None:
    """A handler without targets."""


def handler() -> Callable[[], None]:
    return lambda: None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{line.getMessage()} {vars(line).get('state', '')}".strip() for line in caplog.records]


def add_end(bp: StateMachineBlueprint) -> None:
    bp.handler_for("end", is_end=True)(nothing)


# --- registration


def test_a_blueprint_shows_what_it_was_given(bp: StateMachineBlueprint) -> None:
    start, end, joined, urgent = handler(), handler(), handler(), handler()

    assert bp.handler_for("start", is_start=True)(start) is start
    bp.handler_for("end", is_end=True)(end)
    bp.aggregator_for("end")(joined)
    bp.handler_for("start").when("context.initial_data.n == 1")(urgent)

    assert (bp.name, bp.api_endpoint, bp.api_version) == ("flow", "/jobs/flow", "v1")
    assert bp.handlers == {"start": start, "end": end}
    assert bp.aggregator_handlers == {"end": joined}
    assert [(c.state, c.function) for c in bp.conditional_handlers] == [("start", urgent)]
    assert bp.start_state == "start"
    assert bp.end_states == {"end"}
    assert bp.states == ("start", "end")


def test_a_second_default_handler_is_refused(bp: StateMachineBlueprint) -> None:
    bp.handler_for("a")(nothing)

    with pytest.raises(ValueError, match=r"^Default handler for state 'a' is already registered.$"):
        bp.handler_for("a")(nothing)


def test_a_second_start_state_is_refused(bp: StateMachineBlueprint) -> None:
    bp.handler_for("a", is_start=True)(nothing)

    with pytest.raises(ValueError, match=r"^Blueprint 'flow' already has a start state: 'a'.$"):
        bp.handler_for("b", is_start=True)(nothing)

    assert bp.start_state == "a"
    assert "b" not in bp.handlers


def test_a_second_aggregator_is_refused(bp: StateMachineBlueprint) -> None:
    bp.aggregator_for("a")(nothing)

    with pytest.raises(ValueError, match=r"^Aggregator for state 'a' is already registered.$"):
        bp.aggregator_for("a")(nothing)


def test_when_keeps_start_and_end(bp: StateMachineBlueprint) -> None:  # R56
    condition = "context.initial_data.n == 1"

    bp.handler_for("only", is_start=True, is_end=True, outcome="failure").when(condition)(nothing)

    bp.validate()
    assert bp.start_state == "only"
    assert bp.end_outcomes == {"only": EndOutcome.FAILURE}


def test_a_bad_condition_is_refused_where_it_is_written(bp: StateMachineBlueprint) -> None:
    with pytest.raises(ValueError, match=r"^Invalid condition string format: n == 1$"):
        bp.handler_for("a").when("n == 1")
    with pytest.raises(ValueError, match=r"^Unsupported operator: ===$"):
        bp.handler_for("a").when("context.initial_data.n === 1")


# --- end states


def test_the_name_decides_how_a_job_ends_unless_the_blueprint_says(
    bp: StateMachineBlueprint,
) -> None:  # R20
    for state in ("end", "payment_failed", "order.cancelled"):
        bp.handler_for(state, is_end=True)(nothing)
    bp.handler_for("refused", is_end=True, outcome="failure")(nothing)
    bp.handler_for("expected_error", is_end=True, outcome="success")(nothing)
    bp.handler_for("error")(nothing)

    assert bp.end_outcomes == {
        "end": EndOutcome.SUCCESS,
        "payment_failed": EndOutcome.FAILURE,
        "order.cancelled": EndOutcome.CANCELLED,
        "refused": EndOutcome.FAILURE,
        "expected_error": EndOutcome.SUCCESS,
    }
    assert not bp.has_failed_state


def test_an_outcome_that_cannot_be_is_refused(bp: StateMachineBlueprint) -> None:
    with pytest.raises(ValueError, match="outcome must be success, failure or cancelled"):
        bp.handler_for("a", is_end=True, outcome="done")
    with pytest.raises(ValueError, match="needs is_end=True"):
        bp.handler_for("a", outcome="success")
    bp.handler_for("a", is_end=True, outcome="success")(nothing)
    with pytest.raises(ValueError, match="Outcome of state 'a' is already declared: 'success'"):
        bp.handler_for("a", is_end=True, outcome="failure").when(lambda _: True)(nothing)


# --- which handler runs


def test_the_first_condition_that_holds_wins_then_the_default(bp: StateMachineBlueprint) -> None:
    low, high, default = handler(), handler(), handler()
    bp.handler_for("start").when("context.initial_data.n > 1")(low)
    bp.handler_for("start", is_start=True)(default)  # R55: in any order
    bp.handler_for("start").when("context.initial_data.n > 2")(high)

    def found(n: object) -> object:
        return bp.find_handler("start", context(initial_data={"n": n}))

    assert found(3) is low
    assert found(1) is default
    assert found("a") is default


def test_a_condition_may_be_a_function_of_the_context(bp: StateMachineBlueprint) -> None:
    ours, theirs = handler(), handler()
    bp.handler_for("start").when(lambda context: context.job_id == "job-2")(theirs)
    bp.handler_for("start").when(lambda context: context.job_id == "job-1")(ours)

    assert bp.find_handler("start", context()) is ours


def test_the_aggregator_is_taken_only_after_a_fan_out(bp: StateMachineBlueprint) -> None:
    joined, conditional, default = handler(), handler(), handler()
    bp.aggregator_for("start")(joined)
    bp.handler_for("start").when("context.initial_data.n == 1")(conditional)
    bp.handler_for("start")(default)

    assert bp.find_handler("start", context(aggregation_results={})) is joined
    assert bp.find_handler("start", context(initial_data={"n": 1})) is conditional
    assert bp.find_handler("start", context()) is default


def test_a_fan_out_may_lead_to_a_state_without_aggregator(bp: StateMachineBlueprint) -> None:
    bp.handler_for("start")(nothing)

    assert bp.find_handler("start", context(aggregation_results={})) is nothing


def test_no_handler_is_a_definition_error_with_the_known_text(
    bp: StateMachineBlueprint,
) -> None:  # R24, R55
    bp.handler_for("start", is_start=True).when("context.initial_data.n == 1")(nothing)
    bp.aggregator_for("join")(nothing)

    for state in ("start", "join", "absent"):
        with pytest.raises(DefinitionError) as refused:
            bp.find_handler(state, context())
        assert isinstance(refused.value, ValueError)
        assert str(refused.value) == (
            f"No suitable handler found for state '{state}' in blueprint 'flow' "
            "for the given context."
        )


async def test_the_handler_to_run_is_that_of_the_current_state(bp: StateMachineBlueprint) -> None:
    @bp.handler_for("start", is_start=True, targets=[])
    async def start(n: int, actions: ActionFactory) -> None:
        actions.transition_to(f"state-{n}")

    given = context(initial_data={"n": 3})
    bp.validate()

    compiled = bp.handler_to_run(given)
    await compiled.run(given)

    assert compiled.function is start
    assert compiled is bp.handler_to_run(given)
    assert given.actions.next_state == "state-3"
    assert list(bp.get_handler_params(start)) == ["n", "actions"]


# --- checks


def test_a_blueprint_without_a_start_state_is_refused(bp: StateMachineBlueprint) -> None:
    add_end(bp)

    for check in (bp.validate, bp.validate_integrity):
        with pytest.raises(
            ValueError, match=r"^Blueprint 'flow' must have exactly one start state.$"
        ):
            check()


def test_every_way_to_a_state_is_read_from_the_source(
    bp: StateMachineBlueprint, caplog: pytest.LogCaptureFixture
) -> None:
    @bp.handler_for("start", is_start=True)
    async def start(context: JobContext, actions: ActionFactory) -> None:
        if context.initial_data:
            actions.transition_to("by_position")
        elif context.state_history:
            actions.go_to(state="by_keyword" if context.job_id else "by_choice")
        else:
            context.actions.dispatch_task("t", {}, {"success": "by_status", "failure": "end"})

    @bp.handler_for("by_position")
    async def by_position(actions: ActionFactory) -> None:
        actions.dispatch_parallel(tasks=[], aggregate_into="joined")

    @bp.handler_for("by_keyword")
    def by_keyword(actions: ActionFactory) -> None:
        def later() -> None:
            actions.dispatch_parallel([], "joined")

        later()

    @bp.handler_for("by_choice")
    async def by_choice(actions: ActionFactory) -> None:
        actions.run_blueprint("child", {}, transitions={"success": "end"})

    @bp.handler_for("by_status").when("context.initial_data.n == 1")
    async def by_status(actions: ActionFactory) -> None:
        actions.await_human_approval("slack", "?", {"yes": "approved", "no": "end"})

    @bp.aggregator_for("joined")
    async def joined(actions: ActionFactory) -> None:
        actions.transition_to("end", error_message="not_a_state")

    to_end: Callable[[ActionFactory], None] = lambda actions: actions.transition_to("end")  # noqa: E731
    bp.handler_for("approved")(to_end)
    add_end(bp)

    bp.validate()

    assert not caplog.records


def test_a_target_that_does_not_exist_is_refused(bp: StateMachineBlueprint) -> None:
    @bp.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {}, {"success": "nowhere"})

    with pytest.raises(ValueError) as refused:
        bp.validate()

    assert str(refused.value) == (
        "Blueprint 'flow' has a dangling transition: "
        "state 'start' leads to non-existent state 'nowhere'."
    )


def test_an_event_of_a_worker_leads_to_a_state_too(bp: StateMachineBlueprint) -> None:
    @bp.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {}, {"success": "end"}, event_transitions={"halfway": "look"})

    add_end(bp)

    with pytest.raises(ValueError, match="state 'start' leads to non-existent state 'look'"):
        bp.validate()
    bp.handler_for("look", is_end=True)(nothing)
    bp.validate()
    assert "start -> look" in bp.render_graph()


def test_sleep_and_signals_lead_to_states_too(
    bp: StateMachineBlueprint, caplog: pytest.LogCaptureFixture
) -> None:
    @bp.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        await asyncio.sleep(0)  # which is no action
        actions.sleep(5, next_state="rested")

    @bp.handler_for("rested")
    async def rested(context: JobContext) -> None:
        context.actions.wait_for_signal("paid", {"received": "end", "timeout": "late"}, 60)

    add_end(bp)

    with pytest.raises(ValueError, match="state 'rested' leads to non-existent state 'late'"):
        bp.validate()
    bp.handler_for("late", is_end=True)(nothing)
    bp.validate()
    assert "start -> rested" in bp.render_graph()
    assert not caplog.records


def test_a_policy_of_the_blueprint_is_checked_when_it_is_made() -> None:
    policy = RetryPolicy(attempts=2)

    assert StateMachineBlueprint("b", retry=policy).retry is policy
    assert StateMachineBlueprint("b", retry={"attempts": 2}).retry == policy
    assert StateMachineBlueprint("b").retry is None
    with pytest.raises(ValueError, match=r"retry\.attempts must be 1 or more, not 0"):
        StateMachineBlueprint("b", retry={"attempts": 0})


def test_declared_events_have_a_schema_that_is_one(bp: StateMachineBlueprint) -> None:
    pages = {"type": "object", "properties": {"pages": {"type": "integer"}}}
    bp.event("halfway", pages)
    bp.event("beat")

    with pytest.raises(ValueError, match="Event 'beat' is already declared"):
        bp.event("beat", {})
    with pytest.raises(ValueError, match="Schema of event 'odd': "):
        bp.event("odd", {"type": "integre"})
    with pytest.raises(
        ValueError, match=r"Schema of event 'far': .*a schema elsewhere is not loaded"
    ):
        bp.event("far", {"$ref": "https://example.com/schema.json"})
    assert bp.events == {"halfway": pages, "beat": None}


def test_unreachable_states_are_refused_when_every_handler_could_be_read(
    bp: StateMachineBlueprint,
) -> None:
    bp.handler_for("start", is_start=True)(nothing)
    bp.handler_for("b", is_end=True)(nothing)
    bp.aggregator_for("a")(nothing)

    with pytest.raises(ValueError) as refused:
        bp.validate()

    assert str(refused.value) == (
        "Blueprint 'flow' has unreachable states: a, b. "
        "All states must be reachable from the start state."
    )


def test_the_state_failed_needs_no_way_to_it(bp: StateMachineBlueprint) -> None:
    bp.handler_for("start", is_start=True)(nothing)
    bp.handler_for("failed", is_end=True)(nothing)

    bp.validate()

    assert bp.has_failed_state


async def by_constant(actions: ActionFactory) -> None:
    actions.transition_to(NEXT)


async def by_variable_transitions(actions: ActionFactory, transitions: dict[str, str]) -> None:
    actions.dispatch_task("t", {}, transitions)


async def by_spread(actions: ActionFactory, more: dict[str, str]) -> None:
    actions.dispatch_task("t", {}, transitions={**more})


async def by_variable_event_transitions(actions: ActionFactory, more: dict[str, str]) -> None:
    actions.dispatch_task("t", {}, {}, event_transitions=more)


async def by_arguments(actions: ActionFactory, task: list[Any]) -> None:
    actions.dispatch_task(*task)


def route(actions: ActionFactory) -> None:
    actions.transition_to("end")


async def by_another_function(actions: ActionFactory) -> None:
    route(actions)


async def by_the_context(context: JobContext) -> None:
    route(context.actions)


async def by_another_name(context: JobContext) -> None:
    chosen = context
    chosen.actions.transition_to("start")


async def by_a_computed_sleep(actions: ActionFactory) -> None:
    actions.sleep(1, next_state=NEXT)


async def by_a_method_that_sleeps(actions: ActionFactory) -> None:
    rest = actions.sleep
    rest(1, next_state="end")


async def by_a_method(actions: ActionFactory) -> None:
    go = actions.transition_to
    go("end")


without_source: Callable[..., object] = print


@pytest.mark.parametrize(
    "start",
    [
        by_constant, by_variable_transitions, by_variable_event_transitions, by_spread,
        by_arguments, by_another_function,
        by_the_context, by_another_name, by_a_method, by_a_computed_sleep,
        by_a_method_that_sleeps, without_source,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_only_warned_about(
    bp: StateMachineBlueprint, caplog: pytest.LogCaptureFixture, start: Callable[..., object]
) -> None:  # R58
    bp.handler_for("start", is_start=True)(start)
    add_end(bp)

    bp.validate()

    assert warnings(caplog) == [
        "not every target of a handler can be read; declare them with targets=[...] start",
        "states may be unreachable",
    ]


def test_declared_targets_stand_in_for_what_cannot_be_read(
    bp: StateMachineBlueprint, caplog: pytest.LogCaptureFixture
) -> None:  # R58
    bp.handler_for("start", is_start=True, targets=["end", "join"])(by_constant)
    bp.aggregator_for("join", targets=["end"])(by_constant)
    add_end(bp)

    bp.validate()

    assert not caplog.records


def test_declared_targets_are_checked_too(bp: StateMachineBlueprint) -> None:
    bp.handler_for("start", is_start=True, targets=["nowhere"])(by_constant)

    with pytest.raises(ValueError, match="state 'start' leads to non-existent state 'nowhere'"):
        bp.validate()
    with pytest.raises(TypeError, match="targets must be a list"):
        bp.handler_for("other", targets="end")


# --- the graph


def drawn(bp: StateMachineBlueprint) -> StateMachineBlueprint:
    @bp.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {}, {"success": "end", "retry": "start", "again": "start"})

    add_end(bp)
    return bp


def test_the_graph_is_dot_text_without_any_binary(
    bp: StateMachineBlueprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")

    lines = [line.strip() for line in drawn(bp).render_graph().splitlines()]

    assert lines == [
        "// State Machine for flow",
        "digraph {",
        "node [shape=box style=rounded]",
        "start",
        "end",
        "start -> end",
        "start -> start",
        "}",
    ]


@pytest.mark.parametrize("spelling", ["output_format", "format"])
def test_the_graph_is_drawn_into_a_file_and_the_text_removed(
    bp: StateMachineBlueprint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spelling: str
) -> None:
    shell = shutil.which("sh")
    dot = tmp_path / "bin" / "dot"
    dot.parent.mkdir()
    dot.write_text(f'#!{shell}\nfor last; do :; done\necho "$@" > "$last.svg"\n')
    dot.chmod(dot.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(dot.parent))

    path = drawn(bp).render_graph(str(tmp_path / "flow"), **{spelling: "svg"})

    assert path == str(tmp_path / "flow.svg")
    assert "-Tsvg" in Path(path).read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "flow.svg"]


def test_a_colon_in_a_state_is_part_of_its_name(bp: StateMachineBlueprint) -> None:
    bp.handler_for("a:b", is_start=True, targets=["a:b"])(nothing)

    assert '"a&#58;b" -> "a&#58;b"' in bp.render_graph()


# --- data stores


class Cache:
    async def get(self, key: str) -> str:
        return f"value of {key}"


class FakeKeyValues:
    def __init__(self) -> None:
        self.values: dict[tuple[str, str], bytes] = {}

    async def get(self, namespace: str, key: str) -> bytes | None:
        return self.values.get((namespace, key))

    async def set(self, namespace: str, key: str, value: bytes) -> None:
        self.values[namespace, key] = value


async def test_any_object_is_a_data_store_and_a_dict_becomes_a_shared_one() -> None:  # R59
    cache = Cache()
    bp = StateMachineBlueprint("flow", data_stores={"cache": cache, "limits": {"a": 1}})
    bp.add_data_store("more", {})

    assert bp.stores.cache is cache
    assert await bp.stores.cache.get("k") == "value of k"
    assert isinstance(bp.data_stores["limits"], AsyncDictStore)
    assert await bp.stores.limits.get("a") == 1
    assert await bp.stores.more.get("a") is None


async def test_dict_like_stores_are_shared_by_all_instances_of_a_blueprint() -> None:  # R59
    values = FakeKeyValues()
    ours, theirs, other = (StateMachineBlueprint(name) for name in ("flow", "flow", "other"))
    for each in (ours, theirs, other):
        each.add_data_store("limits", {"a": 1})
        each.add_data_store("more", {})
        each.bind_data_stores(values)

    await ours.stores.limits.set("a", 2)

    assert await theirs.stores.limits.get("a") == 2
    assert await other.stores.limits.get("a") == 1
    assert await theirs.stores.more.get("a") is None


def test_a_second_data_store_of_a_name_is_refused(bp: StateMachineBlueprint) -> None:
    bp.add_data_store("cache", {})

    with pytest.raises(ValueError, match=r"^Data store with name 'cache' already exists.$"):
        bp.add_data_store("cache", Cache())


# --- second names


def test_every_second_name_means_what_the_first_means() -> None:
    assert Blueprint is StateMachineBlueprint
    assert (
        vars(StateMachineBlueprint)["aggregator"] is vars(StateMachineBlueprint)["aggregator_for"]
    )
    assert vars(ActionFactory)["go_to"] is vars(ActionFactory)["transition_to"]
    for second, first in aliases.ALIASES:
        for name in (second, first):
            owner, _, attribute = name.partition(".")
            holder = next(
                vars(module)[owner]
                for module in (aliases, blueprint, actions_module)
                if owner in vars(module)
            )
            assert callable(getattr(holder, attribute) if attribute else holder)


def test_handler_takes_the_state_from_the_function_if_left_out(bp: StateMachineBlueprint) -> None:
    @bp.handler
    async def bare() -> None: ...

    @bp.handler()
    async def called() -> None: ...

    @bp.handler(is_start=True)
    async def first() -> None: ...

    @bp.handler("named", is_end=True)
    async def fourth() -> None: ...

    @bp.handler().when("context.initial_data.n == 1")
    async def conditional() -> None: ...

    assert bp.handlers == {"bare": bare, "called": called, "first": first, "named": fourth}
    assert bp.conditional_handlers[0].state == "conditional"
    assert bp.start_state == "first"
    assert bp.end_states == {"named"}
