"""What is wrong with a blueprint rather than with one run of it, so that a repeat cannot help."""

from avtomatika_core.errors import AvtomatikaError


class DefinitionError(AvtomatikaError, ValueError):
    """The blueprint cannot do what was asked of it; the job is quarantined at once."""
