-- Removes the SQL functions. It fails, and changes nothing, while a trigger uses them or their schema holds something else.
DO $socketio$
DECLARE
    made pg_catalog.regprocedure;
BEGIN
    IF pg_catalog.to_regclass({schema_text} || '.settings') IS NULL THEN
        RETURN;
    END IF;
    FOR made IN SELECT oid FROM pg_catalog.pg_proc
        WHERE pronamespace = {schema_text}::pg_catalog.regnamespace AND proname = ANY (ARRAY[{names}, {obsolete}])
    LOOP
        EXECUTE 'DROP FUNCTION ' || made;
    END LOOP;
    DROP TABLE {schema}.settings;
    DROP SCHEMA {schema};
END
$socketio$;
