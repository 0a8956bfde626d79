-- The columns are go-sync-kit's, so that a Go process can read and write the table, too. Ids and types are compared byte
-- by byte: nobody sorts them for people, and the rules of a language would slow down every insert into an index.
CREATE TABLE {table} (
    version      bigserial PRIMARY KEY,
    id           pg_catalog.text COLLATE pg_catalog."C" NOT NULL UNIQUE,
    aggregate_id pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    event_type   pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    data         pg_catalog.jsonb,
    metadata     pg_catalog.jsonb,
    created_at   pg_catalog.timestamptz DEFAULT pg_catalog.now(),
    stream_name  pg_catalog.text COLLATE pg_catalog."C" GENERATED ALWAYS AS ('stream_' || aggregate_id) STORED
);
-- The one index that reading needs beyond the two keys.
CREATE INDEX {index} ON {table} (aggregate_id, version);
-- One notification per statement, and one per transaction in the end, because equal ones are folded.
CREATE FUNCTION {wake}() RETURNS trigger LANGUAGE plpgsql AS $wake$
BEGIN
    PERFORM pg_catalog.pg_notify(pg_catalog.concat('sio_events_', TG_RELID), '');
    RETURN NULL;
END $wake$;
CREATE TRIGGER {wake_trigger} AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {wake}();
