"""State machines as users write them."""

from avtomatika_common.aliases import Blueprint
from avtomatika_common.blueprint import StateMachineBlueprint

__all__ = ["Blueprint", "StateMachineBlueprint"]
