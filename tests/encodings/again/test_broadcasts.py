"""Whom an event reaches, in databases of other encodings."""

from tests.cluster.test_broadcasts import *  # noqa: F403 - found by pytest, with the fixtures
