"""Signed messages, in databases of other encodings."""

from tests.bus.test_signing import *  # noqa: F403 - found by pytest, with the fixtures
