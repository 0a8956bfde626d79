-- Whoever rewinds, pauses, resumes, divides, retires or deletes a durable subscription tells its consumers at once, on the
-- channel of the event table. Consumers that come, go and acknowledge do not.
CREATE FUNCTION {subscriptions_wake}() RETURNS trigger LANGUAGE plpgsql AS $wake$
BEGIN
    -- The event table beside this one, whose schema may have been renamed; otherwise the one that was there.
    PERFORM pg_catalog.pg_notify(pg_catalog.concat('sio_events_', coalesce(
        pg_catalog.to_regclass(pg_catalog.format('%I.%I', TG_TABLE_SCHEMA,
            pg_catalog.left(TG_TABLE_NAME, -pg_catalog.length('_subscriptions')))),
        pg_catalog.to_regclass(TG_ARGV[0]))::pg_catalog.oid), 'durable');
    RETURN NULL;
END $wake$;
DECLARE
    -- The event table may be in another schema than the tables beside it, and in none that the writers search.
    wake pg_catalog.text := (SELECT $trigger$EXECUTE FUNCTION {subscriptions_wake}($trigger$
            || pg_catalog.quote_literal(pg_catalog.format('%I.%I', nspname, relname)) || ')'
        FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
        WHERE pg_class.oid = {table_text}::pg_catalog.regclass);
BEGIN
    EXECUTE $trigger$CREATE TRIGGER {subscriptions_wake_trigger} AFTER UPDATE OF epoch, is_paused ON {subscriptions}
        FOR EACH ROW WHEN (NEW.owner IS NULL AND (NEW.epoch, NEW.is_paused) IS DISTINCT FROM (OLD.epoch, OLD.is_paused))
        $trigger$ || wake;
    EXECUTE $trigger$CREATE TRIGGER {subscriptions_gone_trigger} AFTER DELETE ON {subscriptions}
        FOR EACH STATEMENT $trigger$ || wake;
END;
