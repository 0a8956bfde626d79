-- go-sync-kit's notifications, for Go processes that may not add them themselves. Under the names it gives them, so that
-- its own start replaces these and adds no others.
IF pg_catalog.to_regprocedure({go_notify_text}) IS NULL THEN
    CREATE FUNCTION {go_notify}() RETURNS trigger LANGUAGE plpgsql AS $go$
    DECLARE
        head pg_catalog.text := pg_catalog.concat('{"version" : ', NEW.version, ', "id" : ', pg_catalog.to_json(NEW.id),
            ', "aggregate_id" : ', pg_catalog.to_json(NEW.aggregate_id),
            ', "event_type" : ', pg_catalog.to_json(NEW.event_type));
        tail pg_catalog.text := pg_catalog.concat(', "created_at" : ', pg_catalog.to_json(NEW.created_at), '}');
    BEGIN
        PERFORM pg_catalog.pg_notify(NEW.stream_name, head || tail);
        PERFORM pg_catalog.pg_notify('events_global',
            pg_catalog.concat(head, ', "stream_name" : ', pg_catalog.to_json(NEW.stream_name), tail));
        RETURN NEW;
    END $go$;
END IF;
CREATE TRIGGER events_notify_trigger AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {go_notify}();
