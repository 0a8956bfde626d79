"""Attachments, in databases of other encodings."""

from tests.bus.test_attachments import *  # noqa: F403 - found by pytest, with the fixtures
