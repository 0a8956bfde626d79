"""Whatever stands in a notification, in databases of other encodings."""

from tests.cluster.test_bad_messages import *  # noqa: F403 - found by pytest, with the fixtures
