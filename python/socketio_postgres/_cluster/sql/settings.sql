-- The schema of the SQL functions, and their settings. They are brought to what is written here every time.

DO $socketio$
DECLARE
    installed pg_catalog.int4;
    stranger pg_catalog.text;
BEGIN
    IF pg_catalog.to_regnamespace({schema_text}) IS NULL THEN
        CREATE SCHEMA {schema};
    END IF;
    -- Whoever owns any of this decides what runs with the rights of the role that installs.
    SELECT pg_catalog.quote_ident(r.rolname) INTO stranger FROM (
        SELECT nspowner AS owner FROM pg_catalog.pg_namespace WHERE oid = {schema_text}::pg_catalog.regnamespace
        UNION ALL SELECT relowner FROM pg_catalog.pg_class
            WHERE relnamespace = {schema_text}::pg_catalog.regnamespace AND relname = 'settings'
        UNION ALL SELECT proowner FROM pg_catalog.pg_proc
            WHERE pronamespace = {schema_text}::pg_catalog.regnamespace AND proname = ANY (ARRAY[{names}, {obsolete}])
    ) AS found JOIN pg_catalog.pg_roles AS r ON r.oid = found.owner
    WHERE r.rolname <> current_user AND NOT r.rolsuper AND r.rolname <> 'pg_database_owner'
        AND r.oid <> (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    LIMIT 1;
    IF stranger IS NOT NULL THEN
        RAISE EXCEPTION 'the schema % or something in it belongs to %, not to %', {schema_text}, stranger, current_user
            USING ERRCODE = '42501', HINT = pg_catalog.concat(
                'Install as that role, for example after SET ROLE ', stranger, ', or drop what it should not have made.');
    END IF;
    IF pg_catalog.to_regclass({schema_text} || '.settings') IS NOT NULL THEN
        EXECUTE 'SELECT version FROM ' || {schema_text} || '.settings' INTO installed;
    END IF;
    IF installed > {version} THEN
        RAISE EXCEPTION 'the schema % has version % of the SQL functions, and this package would install version {version}',
            {schema_text}, installed
            USING ERRCODE = '55000', HINT = 'Install with the newest socketio-postgres of the cluster.';
    END IF;
    IF pg_catalog.to_regclass({attachments}) IS NULL THEN
        RAISE EXCEPTION 'the attachment table % does not exist', {attachments}
            USING ERRCODE = '42P01', HINT = 'Create it first: socketio-postgres sql prints how.';
    END IF;
END
$socketio$;

CREATE TABLE IF NOT EXISTS {schema}.settings (
    is_only_row       pg_catalog.bool PRIMARY KEY DEFAULT true CHECK (is_only_row),
    version           pg_catalog.int4 NOT NULL,
    channel           pg_catalog.text NOT NULL,
    attachments       pg_catalog.text NOT NULL,
    payload_threshold pg_catalog.int4 NOT NULL,
    max_bytes         pg_catalog.int4 NOT NULL CHECK (max_bytes > 0),
    longest           pg_catalog.interval NOT NULL DEFAULT '60 s',
    inner_key         pg_catalog.bytea,
    outer_key         pg_catalog.bytea
);
-- What an older version lacks. Only then, because it waits for every transaction that has emitted, and others wait for it.
DO $socketio$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute
        WHERE attrelid = ({schema_text} || '.settings')::pg_catalog.regclass AND attname = 'longest') THEN
        ALTER TABLE {schema}.settings ADD COLUMN longest pg_catalog.interval NOT NULL DEFAULT '60 s';
    END IF;
END
$socketio$;
COMMENT ON TABLE {schema}.settings IS 'Settings of the SQL functions. The keys are secret: grant nobody to read this table.';

-- Whom default privileges would let read it, PUBLIC included.
DO $socketio$
DECLARE
    reader pg_catalog.text;
BEGIN
    FOR reader IN
        SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END
        FROM pg_catalog.pg_class AS c, LATERAL pg_catalog.aclexplode(c.relacl) AS a
        WHERE c.oid = ({schema_text} || '.settings')::pg_catalog.regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE 'REVOKE ALL ON ' || {schema_text} || '.settings FROM ' || reader;
    END LOOP;
END
$socketio$;

INSERT INTO {schema}.settings AS s (version, channel, attachments, payload_threshold, max_bytes)
SELECT 0, {channel}, pg_catalog.format('%I.%I', n.nspname, c.relname), {payload_threshold}, {max_bytes}
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = pg_catalog.to_regclass({attachments})
ON CONFLICT (is_only_row) DO UPDATE SET channel = EXCLUDED.channel, attachments = EXCLUDED.attachments,
    payload_threshold = EXCLUDED.payload_threshold;
