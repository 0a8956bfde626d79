-- Whoever rewinds, pauses, resumes, divides, retires or deletes a durable subscription tells its consumers at once, on the
-- channel of the event table. Consumers that come, go and acknowledge do not.
CREATE FUNCTION {subscriptions_wake}() RETURNS trigger LANGUAGE plpgsql AS $wake$
BEGIN
    PERFORM pg_catalog.pg_notify(pg_catalog.concat('sio_events_', pg_catalog.to_regclass(pg_catalog.format('%I.%I',
        TG_TABLE_SCHEMA, pg_catalog.left(TG_TABLE_NAME, -pg_catalog.length('_subscriptions'))))::pg_catalog.oid), 'durable');
    RETURN NULL;
END $wake$;
CREATE TRIGGER {subscriptions_wake_trigger} AFTER UPDATE OF epoch, is_paused ON {subscriptions} FOR EACH ROW
    WHEN (NEW.owner IS NULL AND (NEW.epoch, NEW.is_paused) IS DISTINCT FROM (OLD.epoch, OLD.is_paused))
    EXECUTE FUNCTION {subscriptions_wake}();
CREATE TRIGGER {subscriptions_gone_trigger} AFTER DELETE ON {subscriptions} FOR EACH STATEMENT
    EXECUTE FUNCTION {subscriptions_wake}();
