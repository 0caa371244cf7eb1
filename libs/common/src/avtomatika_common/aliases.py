"""The second names: each means just what the first does. New code uses the first.

`bp.handler` differs from `bp.handler_for` in one thing: the state may be left out.
"""

from typing import Final

from avtomatika_common.actions import ActionFactory
from avtomatika_common.blueprint import StateMachineBlueprint

Blueprint = StateMachineBlueprint

ALIASES: Final = (
    ("Blueprint", "StateMachineBlueprint"),
    ("Blueprint.handler", "StateMachineBlueprint.handler_for"),
    ("Blueprint.aggregator", "StateMachineBlueprint.aggregator_for"),
    ("ActionFactory.go_to", "ActionFactory.transition_to"),
)
"""Second name, first name."""

__all__ = ["ALIASES", "ActionFactory", "Blueprint", "StateMachineBlueprint"]
