"""What all tests of this folder take."""

from tests.fixtures.patience import patience

__all__ = ["patience"]
