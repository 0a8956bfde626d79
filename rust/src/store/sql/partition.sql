-- The partition of an aggregate, as `partition_of` of the core computes it. Its definition must never change, and the
-- encoding of a database does not, so the result is the same for ever, which an index requires.
-- The cost says that the result should be read from the index rather than computed for every event.
CREATE FUNCTION {partition}(aggregate_id pg_catalog.text, partitions int) RETURNS int
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 10000 AS $partition$
BEGIN
    RETURN ('x' || pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(
        pg_catalog.convert_to(aggregate_id, 'UTF8')), 1, 3), 'hex'))::bit(24)::int % partitions;
END $partition$;
