"""Whatever stands in a notification, in databases of other encodings."""

from tests.integration.test_bad_messages import *  # noqa: F403 - found by pytest, with the fixtures
