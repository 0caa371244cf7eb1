import pytest

from avtomatika_core.graph import StateGraph, check_graph


def graph(targets: dict[str, list[str]], **more: list[str]) -> StateGraph:
    return StateGraph(states=list(targets), start="start", targets=targets, **more)


def test_a_connected_graph_has_no_problem() -> None:
    connected = graph({"start": ["work"], "work": ["start", "end"], "end": []})

    assert check_graph("flow", connected) is None


def test_a_target_that_does_not_exist_is_named() -> None:
    dangling = graph({"start": ["end", "nowhere"], "end": []})

    with pytest.raises(ValueError) as refused:
        check_graph("flow", dangling)

    assert str(refused.value) == (
        "Blueprint 'flow' has a dangling transition: "
        "state 'start' leads to non-existent state 'nowhere'."
    )


def test_a_target_that_does_not_exist_is_an_error_even_while_handlers_are_unread() -> None:
    with pytest.raises(ValueError, match="dangling"):
        check_graph("flow", graph({"start": ["nowhere"]}, unread=["start"]))


def test_states_that_nothing_leads_to_are_listed_in_order() -> None:
    island = graph({"start": ["end"], "end": [], "b": ["a"], "a": ["b"]})

    with pytest.raises(ValueError) as refused:
        check_graph("flow", island)

    assert str(refused.value) == (
        "Blueprint 'flow' has unreachable states: a, b. "
        "All states must be reachable from the start state."
    )


def test_while_a_handler_is_unread_unreachable_states_are_a_warning() -> None:  # R58
    island = graph({"start": [], "end": []}, unread=["start"])

    warning = check_graph("flow", island)

    assert warning is not None
    assert "unreachable states: end." in warning


def test_a_state_entered_by_rule_needs_no_way_to_it() -> None:
    with_rule = graph({"start": [], "failed": ["after"], "after": []}, entered_by_rule=["failed"])

    assert check_graph("flow", with_rule) is None
