-- The id of the event at the position: another one there means that the table was set back. How often in a row an owner
-- ended without letting go, and how often the next event was begun since. Which session replays a parked event, and
-- until when.
ALTER TABLE {subscriptions}
    ADD COLUMN position_id pg_catalog.text,
    ADD COLUMN unclean     int NOT NULL DEFAULT 0,
    ADD COLUMN attempts    int NOT NULL DEFAULT 0;
ALTER TABLE {parked}
    ADD COLUMN claimed_by    pg_catalog.text,
    ADD COLUMN claimed_until pg_catalog.timestamptz;
