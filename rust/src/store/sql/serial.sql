-- Writers take turns: the lock is taken before a statement draws its first version and kept to the end of the
-- transaction, so versions are committed in their order, whoever writes. Creating the trigger waits for writers at work.
CREATE FUNCTION {serial}() RETURNS trigger LANGUAGE plpgsql AS $serial$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock(TG_RELID::int, {turn});
    RETURN NULL;
END $serial$;
CREATE TRIGGER {serial_trigger} BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {serial}();
