"""Tests of other folders, in databases of other encodings."""
