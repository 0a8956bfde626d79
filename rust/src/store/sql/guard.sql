-- Takes the lock that our own writers take, for writers that do not, and keeps the versions of an aggregate in the
-- order of its commits: a version drawn before the lock was free is drawn again.
CREATE FUNCTION {guard}() RETURNS trigger LANGUAGE plpgsql AS $guard$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock(TG_RELID::int, pg_catalog.hashtext(NEW.aggregate_id) & {buckets});
    IF EXISTS (SELECT FROM {table} WHERE aggregate_id = NEW.aggregate_id AND version > NEW.version) THEN
        NEW.version := pg_catalog.nextval(pg_catalog.pg_get_serial_sequence({table_text}, 'version'));
    END IF;
    RETURN NEW;
END $guard$;
CREATE TRIGGER {guard_trigger} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {guard}();
