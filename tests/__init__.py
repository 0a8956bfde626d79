"""Tests of socketio_postgres; see `fixtures` for the real peers that they run against."""
