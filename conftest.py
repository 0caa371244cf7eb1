"""For every test: properties have no deadline per example, a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
