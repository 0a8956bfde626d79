// Drives github.com/c0deZ3R0/go-sync-kit/storage/postgres from standard input: one JSON request per line, one JSON
// answer per line, and a line for each notification a subscription receives. Used by tests/fixtures/go_event_store.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/c0deZ3R0/go-sync-kit/cursor"
	"github.com/c0deZ3R0/go-sync-kit/storage/postgres"
	"github.com/c0deZ3R0/go-sync-kit/synckit"
)

type event struct {
	EventID       string          `json:"id"`
	EventType     string          `json:"event_type"`
	EventStream   string          `json:"aggregate_id"`
	EventData     json.RawMessage `json:"data"`
	EventMetadata map[string]any  `json:"metadata"`
}

func (e event) ID() string               { return e.EventID }
func (e event) Type() string             { return e.EventType }
func (e event) AggregateID() string      { return e.EventStream }
func (e event) Data() any                { return e.EventData }
func (e event) Metadata() map[string]any { return e.EventMetadata }

type request struct {
	Do          string  `json:"do"`
	Dsn         string  `json:"dsn"`
	Events      []event `json:"events"`
	Since       uint64  `json:"since"`
	AggregateID string  `json:"aggregate_id"`
	EventType   string  `json:"event_type"`
	Text        string  `json:"text"`
}

var lock sync.Mutex

func say(value map[string]any) {
	lock.Lock()
	defer lock.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(value)
}

func listed(events []synckit.EventWithVersion) []map[string]any {
	list := make([]map[string]any, 0, len(events))
	for _, e := range events {
		list = append(list, map[string]any{
			"version": e.Version.(cursor.IntegerCursor).Seq, "id": e.Event.ID(), "event_type": e.Event.Type(),
			"aggregate_id": e.Event.AggregateID(), "data": e.Event.Data(), "metadata": e.Event.Metadata(),
		})
	}
	return list
}

func handle(store **postgres.RealtimeEventStore, r request) (any, error) {
	ctx := context.Background()
	since := cursor.IntegerCursor{Seq: r.Since}
	heard := func(kind string) func(postgres.NotificationPayload) error {
		return func(p postgres.NotificationPayload) error {
			say(map[string]any{"heard": kind, "payload": p})
			return nil
		}
	}
	switch r.Do {
	case "open":
		opened, err := postgres.NewRealtimeEventStore(postgres.DefaultConfig(r.Dsn))
		*store = opened
		return nil, err
	case "store":
		for _, e := range r.Events {
			if err := (*store).Store(ctx, e, since); err != nil {
				return nil, err
			}
		}
		return nil, nil
	case "store_batch":
		batch := make([]synckit.EventWithVersion, len(r.Events))
		for i, e := range r.Events {
			batch[i] = synckit.EventWithVersion{Event: e, Version: since}
		}
		return nil, (*store).StoreBatch(ctx, batch)
	case "load":
		events, err := (*store).Load(ctx, since)
		return listed(events), err
	case "load_by_aggregate":
		events, err := (*store).LoadByAggregate(ctx, r.AggregateID, since)
		return listed(events), err
	case "latest_version":
		version, err := (*store).LatestVersion(ctx)
		if err != nil {
			return nil, err
		}
		return version.(cursor.IntegerCursor).Seq, nil
	case "parse_version":
		version, err := (*store).ParseVersion(ctx, r.Text)
		if err != nil {
			return nil, err
		}
		return version.(cursor.IntegerCursor).Seq, nil
	case "subscribe_to_all":
		return nil, (*store).SubscribeToAll(ctx, heard("all"))
	case "subscribe_to_stream":
		return nil, (*store).SubscribeToStream(ctx, r.AggregateID, heard("stream"))
	case "subscribe_to_event_type":
		return nil, (*store).SubscribeToEventType(ctx, r.EventType, heard("event_type"))
	case "active":
		return (*store).GetActiveSubscriptions(), nil
	case "close":
		return nil, (*store).Close()
	}
	return nil, fmt.Errorf("no such request: %q", r.Do)
}

func main() {
	var store *postgres.RealtimeEventStore
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<26)
	for input.Scan() {
		var r request
		decoder := json.Unmarshal(input.Bytes(), &r)
		if decoder != nil {
			say(map[string]any{"error": decoder.Error()})
			continue
		}
		result, err := handle(&store, r)
		if err != nil {
			say(map[string]any{"error": err.Error()})
			continue
		}
		say(map[string]any{"result": result})
	}
}
