"""What all tests with peers take."""

from tests.fixtures.patience import patience

__all__ = ["patience"]
