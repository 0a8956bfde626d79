"""The low-level clients, in databases of other encodings."""

from tests.bus.test_client import *  # noqa: F403 - found by pytest, with the fixtures
