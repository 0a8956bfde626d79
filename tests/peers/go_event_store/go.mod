module socketio-postgres/tests/peers/go_event_store

go 1.24.4

require github.com/c0deZ3R0/go-sync-kit v0.16.0
