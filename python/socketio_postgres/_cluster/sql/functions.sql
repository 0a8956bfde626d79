-- The SQL functions of socketio-postgres, version {version}, after `settings.sql`. They are created again only over an older
-- version: what is replaced keeps its identity, for triggers, grants and the sessions that use it. A function
-- therefore never changes its arguments: a public one gets an overload, and one of `_` a new name.
-- What has a backslash is written as E'...', which means the same whatever `standard_conforming_strings` is.

-- What an older version had for itself.
DO $socketio$
DECLARE
    obsolete pg_catalog.regprocedure;
BEGIN
    FOR obsolete IN SELECT oid FROM pg_catalog.pg_proc
        WHERE pronamespace = {schema_text}::pg_catalog.regnamespace AND proname = ANY (ARRAY[{obsolete}])
    LOOP
        EXECUTE 'DROP FUNCTION ' || obsolete;
    END LOOP;
END
$socketio$;

------------------------------------------------------------------------------------------------ what is sent

-- JSON without blanks between its tokens, as the servers write it.
CREATE OR REPLACE FUNCTION {schema}._compact(value pg_catalog.jsonb)
RETURNS pg_catalog.text LANGUAGE plpgsql IMMUTABLE AS $socketio$
DECLARE
    long text := value::pg_catalog.text;
    short text := pg_catalog.replace(pg_catalog.replace(long, ', ', ','), ': ', ':');
BEGIN
    IF short::pg_catalog.jsonb = value THEN
        RETURN short;
    END IF;
    -- Some text in it has lost blanks, too. To tell the tokens apart takes ten times as long.
    RETURN pg_catalog.regexp_replace(long, E'("(?:[^"\\\\]|\\\\.)*")|([,:]) ', E'\\1\\2', 'g');
END
$socketio$;

-- An HMAC-SHA256 of the notification, truncated, as servers with a signing key write and check it.
CREATE OR REPLACE FUNCTION {schema}._signature(
    channel pg_catalog.text, message pg_catalog.text, inner_key pg_catalog.bytea, outer_key pg_catalog.bytea)
RETURNS pg_catalog.text LANGUAGE sql STABLE AS $socketio$
    SELECT pg_catalog.rtrim(pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(outer_key || pg_catalog.sha256(
        inner_key || pg_catalog.convert_to(channel, 'UTF8') || E'\\x00'::pg_catalog.bytea
        || pg_catalog.convert_to(message, 'UTF8'))), 1, 16), 'base64'), '=')
$socketio$;

-- Publish a message of type `kind`. `value` is what its type has beside `opts`: the event and its arguments, the rooms
-- to join or leave, or whether to close the connection.
CREATE OR REPLACE FUNCTION {schema}._publish(
    kind pg_catalog.int4, namespace pg_catalog.text, rooms pg_catalog.text[], except_ pg_catalog.text[],
    value pg_catalog.jsonb)
RETURNS pg_catalog.void LANGUAGE plpgsql AS $socketio$
DECLARE
    is_for_sockets bool := kind <> 9;
    field text := CASE kind WHEN 3 THEN 'packet' WHEN 9 THEN 'packet' WHEN 6 THEN 'close' ELSE 'rooms' END;
    nsp text := CASE WHEN namespace LIKE '/%' THEN namespace ELSE pg_catalog.concat('/', namespace) END;
    settings record;
    channel text;
    size int;
    head text;
    json text;
    body bytea;
    id bigint;
    -- PostgreSQL delivers equal notifications of one transaction once; this makes them differ. 48 random bits.
    key text := pg_catalog.translate(pg_catalog.encode(
        pg_catalog.substr(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()), 1, 6), 'base64'), '+/', '-_');
BEGIN
    IF namespace IS NULL THEN
        RAISE EXCEPTION 'the namespace is NULL' USING ERRCODE = '22004';
    END IF;
    rooms := {schema}._rooms('rooms', rooms);
    except_ := {schema}._rooms('except_', except_);
    SELECT * INTO STRICT settings FROM {schema}.settings;
    channel := pg_catalog.concat(settings.channel, '#', nsp);
    IF pg_catalog.octet_length(pg_catalog.convert_to(channel, 'UTF8')) > 63 THEN
        RAISE EXCEPTION 'the channel name % is longer than 63 bytes', channel
            USING ERRCODE = '22023', HINT = 'Take a shorter namespace.';
    END IF;
    size := pg_catalog.octet_length(pg_catalog.convert_to(value::pg_catalog.text, 'UTF8'));
    -- A receiver refuses deeper data; the rooms and the event itself never are.
    IF size > 200 AND pg_catalog.jsonb_path_exists(
        value, 'strict $.**{100} ? (@.type() == "array" || @.type() == "object")') THEN
        RAISE EXCEPTION 'the arguments are nested deeper than 100 levels' USING ERRCODE = '54000';
    END IF;
    head := pg_catalog.concat(
        '{"type":', kind, ',"uid":"emitter","nsp":', pg_catalog.to_json(nsp), ',"source":"_sio_adapter"');

    IF size < 2 * settings.payload_threshold THEN  -- blanks are less than half of it
        json := {schema}._compact(value);
        IF kind = 3 THEN
            json := pg_catalog.concat('{"type":2,"nsp":', pg_catalog.to_json(nsp), ',"data":', json, '}');
        END IF;
        json := pg_catalog.concat(
            head, ',"data":{', CASE WHEN is_for_sockets THEN pg_catalog.concat(
                '"opts":{"rooms":', pg_catalog.to_json(rooms), ',"except":', pg_catalog.to_json(except_), ',"flags":{}},') END,
            '"', field, '":', json, '},"k":"', key, '"');
        IF settings.outer_key IS NOT NULL THEN
            json := pg_catalog.concat(
                json, ',"h":"', {schema}._signature(channel, json, settings.inner_key, settings.outer_key), '"');
        END IF;
        json := pg_catalog.concat(json, '}');
        -- In some encodings a character takes more bytes than in UTF-8.
        IF greatest(pg_catalog.octet_length(json), pg_catalog.octet_length(pg_catalog.convert_to(json, 'UTF8')))
            < settings.payload_threshold THEN
            PERFORM pg_catalog.pg_notify(channel, json);
            RETURN;
        END IF;
    END IF;

    IF size > settings.max_bytes THEN
        RAISE EXCEPTION 'a message of % bytes for % is larger than %, the max_bytes of %',
            size, channel, settings.max_bytes, {schema_text} || '.settings'
            USING ERRCODE = '54000',
            HINT = 'Send a key instead, by which clients ask a server for the data. Or emit from a program.';
    END IF;
    body := {schema}._msgpack(value);
    IF kind = 3 THEN
        body := E'\\x83'::pg_catalog.bytea || {schema}._msgpack_text('type') || E'\\x02'::pg_catalog.bytea
            || {schema}._msgpack_text('nsp') || {schema}._msgpack_text(nsp) || {schema}._msgpack_text('data') || body;
    END IF;
    body := {schema}._msgpack_text(field) || body;
    IF is_for_sockets THEN
        body := E'\\x82'::pg_catalog.bytea || {schema}._msgpack_text('opts') || E'\\x83'::pg_catalog.bytea
            || {schema}._msgpack_text('rooms') || {schema}._msgpack(pg_catalog.to_jsonb(rooms))
            || {schema}._msgpack_text('except') || {schema}._msgpack(pg_catalog.to_jsonb(except_))
            || {schema}._msgpack_text('flags') || E'\\x80'::pg_catalog.bytea || body;
    ELSE
        body := E'\\x81'::pg_catalog.bytea || body;
    END IF;
    body := E'\\x85'::pg_catalog.bytea || {schema}._msgpack_text('type') || pg_catalog.set_byte(E'\\x00', 0, kind)
        || {schema}._msgpack_text('uid') || {schema}._msgpack_text('emitter') || {schema}._msgpack_text('nsp') || {schema}._msgpack_text(nsp)
        || {schema}._msgpack_text('source') || {schema}._msgpack_text('_sio_adapter') || {schema}._msgpack_text('data') || body;
    IF is_for_sockets THEN
        json := pg_catalog.concat(',"rooms":', pg_catalog.to_json(rooms));
        -- A server without a client in any of these rooms does not read the attachment.
        IF pg_catalog.octet_length(pg_catalog.convert_to(json, 'UTF8')) <= 4000 AND pg_catalog.octet_length(json) <= 4000 THEN
            head := pg_catalog.concat(head, json);
        END IF;
    END IF;
    head := pg_catalog.concat(head, ',"k":"', key, '"');
    IF settings.outer_key IS NOT NULL THEN
        head := pg_catalog.concat(head, ',"b":"', pg_catalog.rtrim(
            pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(body), 1, 16), 'base64'), '='), '"');
        head := pg_catalog.concat(
            head, ',"h":"', {schema}._signature(channel, head, settings.inner_key, settings.outer_key), '"');
    END IF;
    -- The row appears with the commit, and is deleted by its age: it must not be old by then.
    EXECUTE pg_catalog.format('INSERT INTO %s (created_at, payload) VALUES ($1, $2) RETURNING id', settings.attachments)
        INTO STRICT id USING pg_catalog.clock_timestamp() + settings.longest, body;
    PERFORM pg_catalog.pg_notify(channel, pg_catalog.concat(head, ',"attachmentId":"', id, '"}'));
END
$socketio$;

------------------------------------------------------------------------------------------------- MessagePack

-- These are PL/pgSQL down to the smallest, which keeps its expressions ready: as SQL they take three times as long.

CREATE OR REPLACE FUNCTION {schema}._msgpack_text(words pg_catalog.text)
RETURNS pg_catalog.bytea LANGUAGE plpgsql STABLE AS $socketio$
DECLARE
    utf8 bytea := pg_catalog.convert_to(words, 'UTF8');
    size int := pg_catalog.octet_length(utf8);
BEGIN
    IF size < 32 THEN
        RETURN pg_catalog.set_byte(E'\\x00', 0, 160 + size) || utf8;
    ELSIF size < 256 THEN
        RETURN pg_catalog.set_byte(E'\\xd900', 1, size) || utf8;
    ELSIF size < 65536 THEN
        RETURN E'\\xda'::pg_catalog.bytea || pg_catalog.substr(pg_catalog.int4send(size), 3) || utf8;
    END IF;
    RETURN E'\\xdb'::pg_catalog.bytea || pg_catalog.int4send(size) || utf8;
END
$socketio$;

-- Integers of up to 64 bits stay integers; other numbers become doubles, and what is too small for one becomes 0.
CREATE OR REPLACE FUNCTION {schema}._msgpack_number(n pg_catalog.numeric)
RETURNS pg_catalog.bytea LANGUAGE plpgsql IMMUTABLE AS $socketio$
BEGIN
    IF pg_catalog.scale(n) > 0 OR n < -9223372036854775808 OR n > 18446744073709551615 THEN
        RETURN E'\\xcb'::pg_catalog.bytea || pg_catalog.float8send(
            CASE WHEN pg_catalog.abs(n) < 2.4703282292062328e-324 THEN 0 ELSE n::pg_catalog.float8 END);
    ELSIF n >= 0 THEN
        IF n < 128 THEN
            RETURN pg_catalog.set_byte(E'\\x00', 0, n::pg_catalog.int4);
        ELSIF n < 256 THEN
            RETURN pg_catalog.set_byte(E'\\xcc00', 1, n::pg_catalog.int4);
        ELSIF n < 65536 THEN
            RETURN E'\\xcd'::pg_catalog.bytea || pg_catalog.substr(pg_catalog.int4send(n::pg_catalog.int4), 3);
        ELSIF n < 4294967296 THEN
            RETURN E'\\xce'::pg_catalog.bytea || pg_catalog.substr(pg_catalog.int8send(n::pg_catalog.int8), 5);
        ELSIF n < 9223372036854775808 THEN
            RETURN E'\\xcf'::pg_catalog.bytea || pg_catalog.int8send(n::pg_catalog.int8);
        END IF;
        RETURN E'\\xcf'::pg_catalog.bytea || pg_catalog.int8send((n - 18446744073709551616)::pg_catalog.int8);
    ELSIF n >= -32 THEN
        RETURN pg_catalog.set_byte(E'\\x00', 0, (256 + n)::pg_catalog.int4);
    ELSIF n >= -128 THEN
        RETURN pg_catalog.set_byte(E'\\xd000', 1, (256 + n)::pg_catalog.int4);
    ELSIF n >= -32768 THEN
        RETURN E'\\xd1'::pg_catalog.bytea || pg_catalog.int2send(n::pg_catalog.int2);
    ELSIF n >= -2147483648 THEN
        RETURN E'\\xd2'::pg_catalog.bytea || pg_catalog.int4send(n::pg_catalog.int4);
    END IF;
    RETURN E'\\xd3'::pg_catalog.bytea || pg_catalog.int8send(n::pg_catalog.int8);
END
$socketio$;

CREATE OR REPLACE FUNCTION {schema}._msgpack_entries(
    fix pg_catalog.int4, long pg_catalog.int4, count pg_catalog.int4, entries pg_catalog.bytea)
RETURNS pg_catalog.bytea LANGUAGE plpgsql IMMUTABLE AS $socketio$
BEGIN
    IF count = 0 THEN
        RETURN pg_catalog.set_byte(E'\\x00', 0, fix);
    ELSIF count < 16 THEN
        RETURN pg_catalog.set_byte(E'\\x00', 0, fix + count) || entries;
    ELSIF count < 65536 THEN
        RETURN pg_catalog.set_byte(E'\\x00', 0, long) || pg_catalog.substr(pg_catalog.int4send(count), 3) || entries;
    END IF;
    RETURN pg_catalog.set_byte(E'\\x00', 0, long + 1) || pg_catalog.int4send(count) || entries;
END
$socketio$;

CREATE OR REPLACE FUNCTION {schema}._msgpack(value pg_catalog.jsonb)
RETURNS pg_catalog.bytea LANGUAGE plpgsql STABLE AS $socketio$
DECLARE
    kind text := pg_catalog.jsonb_typeof(value);
    count int;
    entries bytea;
BEGIN
    IF kind = 'string' THEN
        RETURN {schema}._msgpack_text(value #>> '{}');
    ELSIF kind = 'number' THEN
        RETURN {schema}._msgpack_number(value::pg_catalog.numeric);
    ELSIF kind = 'boolean' THEN
        RETURN CASE WHEN value::pg_catalog.bool THEN E'\\xc3'::pg_catalog.bytea ELSE E'\\xc2'::pg_catalog.bytea END;
    ELSIF kind = 'null' THEN
        RETURN E'\\xc0'::pg_catalog.bytea;
    ELSIF kind = 'array' THEN
        SELECT pg_catalog.count(*), pg_catalog.string_agg({schema}._msgpack(v), '' ORDER BY i) INTO count, entries
        FROM pg_catalog.jsonb_array_elements(value) WITH ORDINALITY AS entry(v, i);
        RETURN {schema}._msgpack_entries(144, 220, count, entries);
    END IF;
    SELECT pg_catalog.count(*), pg_catalog.string_agg({schema}._msgpack_text(k) || {schema}._msgpack(v), '')
        INTO count, entries FROM pg_catalog.jsonb_each(value) AS entry(k, v);
    RETURN {schema}._msgpack_entries(128, 222, count, entries);
END
$socketio$;

------------------------------------------------------------------------------------------------------ checks

-- The rooms, if all of them are; NULL is none.
CREATE OR REPLACE FUNCTION {schema}._rooms(argument pg_catalog.text, rooms pg_catalog.text[])
RETURNS pg_catalog.text[] LANGUAGE plpgsql IMMUTABLE AS $socketio$
BEGIN
    IF rooms IS NULL OR rooms = '{}' THEN
        RETURN '{}';
    ELSIF pg_catalog.array_ndims(rooms) > 1 THEN
        RAISE EXCEPTION '% has several dimensions', argument USING ERRCODE = '22023';
    ELSIF pg_catalog.array_position(rooms, NULL) IS NOT NULL THEN
        RAISE EXCEPTION '% contains NULL', argument
            USING ERRCODE = '22004', HINT = 'A room is a text that is not empty.';
    ELSIF '' = ANY (rooms) THEN
        RAISE EXCEPTION '% contains an empty text', argument
            USING ERRCODE = '22023', HINT = 'A room is a text that is not empty.';
    END IF;
    RETURN rooms;
END
$socketio$;

-- The event and its arguments as one array.
CREATE OR REPLACE FUNCTION {schema}._packet(event pg_catalog.text, args pg_catalog.jsonb)
RETURNS pg_catalog.jsonb LANGUAGE plpgsql IMMUTABLE AS $socketio$
BEGIN
    IF event IS NULL OR args IS NULL THEN
        RAISE EXCEPTION 'the % NULL', CASE WHEN event IS NULL THEN 'event is' ELSE 'arguments are' END
            USING ERRCODE = '22004';
    ELSIF event = '' OR event IN ({reserved}) THEN
        RAISE EXCEPTION 'the event % is %', pg_catalog.quote_literal(event),
            CASE WHEN event = '' THEN 'empty' ELSE 'reserved by Socket.IO' END USING ERRCODE = '22023';
    ELSIF pg_catalog.jsonb_typeof(args) <> 'array' THEN
        RAISE EXCEPTION 'the arguments are no JSON array but one %', pg_catalog.jsonb_typeof(args)
            USING ERRCODE = '22023', HINT = 'jsonb_build_array makes an array of one argument or several.';
    END IF;
    RETURN pg_catalog.jsonb_build_array(event) || args;
END
$socketio$;

-- Whether to act on these sockets: not if there are none. NULL alone does not mean everybody.
CREATE OR REPLACE FUNCTION {schema}._is_for_somebody(sockets pg_catalog.text[], everybody pg_catalog.bool)
RETURNS pg_catalog.bool LANGUAGE plpgsql IMMUTABLE AS $socketio$
BEGIN
    IF (sockets IS NULL) IS DISTINCT FROM everybody THEN
        RAISE EXCEPTION 'sockets is % and everybody is %', CASE WHEN sockets IS NULL THEN 'NULL' ELSE 'an array' END,
            coalesce(everybody::pg_catalog.text, 'NULL') USING ERRCODE = '22023',
            HINT = 'Pass sids and rooms as an array; or NULL, and everybody => true, for all sockets of the namespace.';
    END IF;
    RETURN sockets IS NULL OR {schema}._rooms('sockets', sockets) <> '{}';
END
$socketio$;

------------------------------------------------------------------------------------------------- for everyone

CREATE OR REPLACE FUNCTION {schema}._emit(
    event pg_catalog.text, args pg_catalog.jsonb, rooms pg_catalog.text[], except_ pg_catalog.text[],
    namespace pg_catalog.text)
RETURNS pg_catalog.void LANGUAGE plpgsql AS $socketio$
DECLARE
    packet jsonb := {schema}._packet(event, args);
BEGIN
    IF rooms IS NULL OR rooms <> '{}' THEN
        PERFORM {schema}._publish(3, namespace, rooms, except_, packet);
    END IF;
END
$socketio$;

CREATE OR REPLACE FUNCTION {schema}.emit(
    event pg_catalog.text, args pg_catalog.jsonb DEFAULT '[]', rooms pg_catalog.text[] DEFAULT NULL,
    except_ pg_catalog.text[] DEFAULT NULL, namespace pg_catalog.text DEFAULT '/')
RETURNS pg_catalog.void LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
BEGIN
    PERFORM {schema}._emit(event, args, rooms, except_, namespace);
END
$socketio$;
COMMENT ON FUNCTION {schema}.emit IS
    'Emit an event to clients when the transaction commits. args: a JSON array. rooms: NULL is everybody, {} nobody.';

CREATE OR REPLACE FUNCTION {schema}."join"(
    sockets pg_catalog.text[], rooms pg_catalog.text[], except_ pg_catalog.text[] DEFAULT NULL,
    namespace pg_catalog.text DEFAULT '/', everybody pg_catalog.bool DEFAULT false)
RETURNS pg_catalog.void LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
BEGIN
    PERFORM {schema}._move(4, sockets, rooms, except_, namespace, everybody);
END
$socketio$;
COMMENT ON FUNCTION {schema}."join" IS
    'Make sockets, given by their sids and rooms, join rooms when the transaction commits.';

CREATE OR REPLACE FUNCTION {schema}.leave(
    sockets pg_catalog.text[], rooms pg_catalog.text[], except_ pg_catalog.text[] DEFAULT NULL,
    namespace pg_catalog.text DEFAULT '/', everybody pg_catalog.bool DEFAULT false)
RETURNS pg_catalog.void LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
BEGIN
    PERFORM {schema}._move(5, sockets, rooms, except_, namespace, everybody);
END
$socketio$;
COMMENT ON FUNCTION {schema}.leave IS
    'Make sockets, given by their sids and rooms, leave rooms when the transaction commits.';

CREATE OR REPLACE FUNCTION {schema}._move(
    kind pg_catalog.int4, sockets pg_catalog.text[], rooms pg_catalog.text[], except_ pg_catalog.text[],
    namespace pg_catalog.text, everybody pg_catalog.bool)
RETURNS pg_catalog.void LANGUAGE plpgsql AS $socketio$
BEGIN
    IF rooms IS NULL THEN
        RAISE EXCEPTION 'rooms is NULL' USING ERRCODE = '22004';
    END IF;
    rooms := {schema}._rooms('rooms', rooms);
    IF {schema}._is_for_somebody(sockets, everybody) AND rooms <> '{}' THEN
        PERFORM {schema}._publish(kind, namespace, sockets, except_, pg_catalog.to_jsonb(rooms));
    END IF;
END
$socketio$;

CREATE OR REPLACE FUNCTION {schema}.disconnect(
    sockets pg_catalog.text[], close pg_catalog.bool DEFAULT false, except_ pg_catalog.text[] DEFAULT NULL,
    namespace pg_catalog.text DEFAULT '/', everybody pg_catalog.bool DEFAULT false)
RETURNS pg_catalog.void LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
BEGIN
    IF close IS NULL THEN
        RAISE EXCEPTION 'close is NULL' USING ERRCODE = '22004';
    END IF;
    IF {schema}._is_for_somebody(sockets, everybody) THEN
        PERFORM {schema}._publish(6, namespace, sockets, except_, pg_catalog.to_jsonb(close));
    END IF;
END
$socketio$;
COMMENT ON FUNCTION {schema}.disconnect IS
    'Disconnect sockets, given by their sids and rooms, when the transaction commits. close: their connection, too.';

CREATE OR REPLACE FUNCTION {schema}.server_side_emit(
    event pg_catalog.text, args pg_catalog.jsonb DEFAULT '[]', namespace pg_catalog.text DEFAULT '/')
RETURNS pg_catalog.void LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
DECLARE
    packet jsonb := {schema}._packet(event, args);
BEGIN
    PERFORM {schema}._publish(9, namespace, NULL, NULL, packet);
END
$socketio$;
COMMENT ON FUNCTION {schema}.server_side_emit IS
    'Emit an event to the servers themselves when the transaction commits. args: a JSON array.';

---------------------------------------------------------------------------------------------------- triggers

-- A trigger's row becomes JSON with the rights of the owner of these functions, and that calls the casts to json which
-- its types have. A cast whose function belongs to somebody else could do anything with these rights.
CREATE OR REPLACE FUNCTION {schema}._check_casts(relation pg_catalog.oid)
RETURNS pg_catalog.void LANGUAGE plpgsql STABLE AS $socketio$
DECLARE
    cast_function text;
BEGIN
    -- Nearly always there is none in the whole database, and nothing more to do.
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_cast WHERE casttarget = 'pg_catalog.json'::pg_catalog.regtype AND castfunc >= 16384
    ) THEN
        RETURN;
    END IF;
    WITH RECURSIVE types(oid) AS (
        SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
        UNION
        SELECT part.oid FROM types JOIN pg_catalog.pg_type AS t ON t.oid = types.oid, LATERAL (
            SELECT t.typelem AS oid WHERE t.typelem <> 0
            UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
            UNION ALL SELECT atttypid FROM pg_catalog.pg_attribute
                WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped
        ) AS part
    )
    SELECT p.oid::pg_catalog.regprocedure INTO cast_function
    FROM types JOIN pg_catalog.pg_cast AS c ON c.castsource = types.oid
        JOIN pg_catalog.pg_proc AS p ON p.oid = c.castfunc JOIN pg_catalog.pg_roles AS r ON r.oid = p.proowner
    WHERE c.casttarget = 'pg_catalog.json'::pg_catalog.regtype AND NOT r.rolsuper AND r.rolname <> current_user
    LIMIT 1;
    IF cast_function IS NOT NULL THEN
        RAISE EXCEPTION '% would convert a column of % with the rights of %', cast_function, relation::pg_catalog.regclass, current_user
            USING ERRCODE = '42501', HINT = 'Only casts to json that a superuser, or this role, owns may be used.';
    END IF;
END
$socketio$;

-- The rooms that a row names: in every template, `{column}` stands for the column's value. With NULL, there is no room.
CREATE OR REPLACE FUNCTION {schema}._rooms_of(line pg_catalog.jsonb, templates pg_catalog.text[])
RETURNS pg_catalog.text[] LANGUAGE plpgsql IMMUTABLE AS $socketio$
DECLARE
    template text;
    part text;
    room text;
    name text;
    rooms text[] := '{}';
BEGIN
    FOREACH template IN ARRAY coalesce(templates, '{}') LOOP
        room := pg_catalog.split_part(template, '{', 1);
        FOR i IN 2 .. pg_catalog.array_length(pg_catalog.string_to_array(template, '{'), 1) LOOP
            part := pg_catalog.split_part(template, '{', i);
            name := pg_catalog.split_part(part, '}', 1);
            IF name = part OR NOT line ? name THEN
                RAISE EXCEPTION 'the room % names a column that there is not', pg_catalog.quote_literal(template)
                    USING ERRCODE = '42703';
            END IF;
            room := room || (line ->> name) || pg_catalog.substr(part, pg_catalog.length(name) + 2);
        END LOOP;
        IF room IS NOT NULL AND NOT room = ANY (rooms) THEN
            rooms := rooms || room;
        END IF;
    END LOOP;
    RETURN rooms;
END
$socketio$;

-- The named columns of a row; all of them without names.
CREATE OR REPLACE FUNCTION {schema}._columns_of(line pg_catalog.jsonb, names pg_catalog.text[])
RETURNS pg_catalog.jsonb LANGUAGE plpgsql IMMUTABLE AS $socketio$
DECLARE
    name text;
    picked jsonb := '{}';
BEGIN
    IF names IS NULL THEN
        RETURN line;
    END IF;
    FOREACH name IN ARRAY names LOOP
        IF NOT line ? name THEN
            RAISE EXCEPTION 'there is no column %', pg_catalog.quote_literal(name) USING ERRCODE = '42703';
        END IF;
        picked := picked || pg_catalog.jsonb_build_object(name, line -> name);
    END LOOP;
    RETURN picked;
END
$socketio$;

-- What both triggers are told: `'*'` alone is everybody, which is NULL here.
CREATE OR REPLACE FUNCTION {schema}._trigger_arguments(
    arguments pg_catalog.text[], OUT event pg_catalog.text, OUT templates pg_catalog.text[],
    OUT namespace pg_catalog.text, OUT names pg_catalog.text[])
LANGUAGE plpgsql IMMUTABLE AS $socketio$
BEGIN
    -- The array of a trigger's arguments begins at 0.
    IF NOT coalesce(pg_catalog.array_length(arguments, 1), 0) BETWEEN 2 AND 4 THEN
        RAISE EXCEPTION 'a trigger takes the event, the rooms and, if wanted, the namespace and the columns'
            USING ERRCODE = '22023', HINT = 'The rooms ''*'' are everybody.';
    END IF;
    event := arguments[0];
    namespace := coalesce(arguments[2], '/');
    names := pg_catalog.regexp_split_to_array(NULLIF(pg_catalog.btrim(arguments[3]), ''), E'\\s*,\\s*');
    IF pg_catalog.btrim(arguments[1]) <> '*' THEN
        templates := pg_catalog.regexp_split_to_array(pg_catalog.btrim(arguments[1]), E'\\s*,\\s*');
        templates := {schema}._rooms('the second argument', templates);
    END IF;
END
$socketio$;

CREATE OR REPLACE FUNCTION {schema}._described(
    op pg_catalog.text, relation pg_catalog.oid, schema pg_catalog.text, name pg_catalog.text)
RETURNS pg_catalog.jsonb LANGUAGE plpgsql STABLE AS $socketio$
DECLARE
    root oid := pg_catalog.pg_partition_root(relation);
BEGIN
    IF root <> relation THEN  -- a partition is known by the name of its table
        SELECT relnamespace::pg_catalog.regnamespace, relname INTO schema, name FROM pg_catalog.pg_class WHERE oid = root;
    END IF;
    RETURN pg_catalog.jsonb_build_object('op', op, 'schema', schema, 'table', name);
END
$socketio$;

CREATE OR REPLACE FUNCTION {schema}.emit_row()
RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
DECLARE
    given record;
    described jsonb;
    before jsonb := 'null';
    after jsonb := 'null';
    left_ text[] := '{}';
    entered text[] := '{}';
    both_ text[];
BEGIN
    IF TG_LEVEL <> 'ROW' OR TG_WHEN <> 'AFTER' THEN
        RAISE EXCEPTION 'emit_row is for triggers AFTER, FOR EACH ROW' USING ERRCODE = '39P01';
    END IF;
    given := {schema}._trigger_arguments(TG_ARGV);
    described := {schema}._described(TG_OP, TG_RELID, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    PERFORM {schema}._check_casts(TG_RELID);
    IF TG_OP <> 'INSERT' THEN
        before := pg_catalog.to_jsonb(OLD);
        left_ := pg_catalog.array_remove({schema}._rooms_of(before, given.templates), '');  -- nobody is in that room
        before := {schema}._columns_of(before, given.names);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after := pg_catalog.to_jsonb(NEW);
        entered := {schema}._rooms('rooms', {schema}._rooms_of(after, given.templates));
        after := {schema}._columns_of(after, given.names);
    END IF;
    IF TG_OP <> 'UPDATE' OR given.templates IS NULL OR left_ = entered THEN
        IF before <> after THEN
            PERFORM {schema}._emit(given.event, pg_catalog.jsonb_build_array(
                described || pg_catalog.jsonb_build_object('new', after, 'old', before)),
                CASE WHEN given.templates IS NOT NULL THEN CASE TG_OP WHEN 'DELETE' THEN left_ ELSE entered END END,
                NULL, given.namespace);
        END IF;
        RETURN NULL;
    END IF;
    -- The row goes to other rooms than before: it is gone for those it leaves, and new for those it enters.
    both_ := ARRAY(SELECT room FROM pg_catalog.unnest(left_) AS room WHERE room = ANY (entered));
    PERFORM {schema}._emit(given.event, pg_catalog.jsonb_build_array(
        described || pg_catalog.jsonb_build_object('op', 'DELETE', 'new', NULL, 'old', before)),
        ARRAY(SELECT room FROM pg_catalog.unnest(left_) AS room WHERE NOT room = ANY (both_)), entered, given.namespace);
    IF before <> after THEN
        PERFORM {schema}._emit(given.event, pg_catalog.jsonb_build_array(
            described || pg_catalog.jsonb_build_object('new', after, 'old', before)), both_, NULL, given.namespace);
    END IF;
    PERFORM {schema}._emit(given.event, pg_catalog.jsonb_build_array(
        described || pg_catalog.jsonb_build_object('op', 'INSERT', 'new', after, 'old', NULL)),
        ARRAY(SELECT room FROM pg_catalog.unnest(entered) AS room WHERE NOT room = ANY (both_)), both_, given.namespace);
    RETURN NULL;
END
$socketio$;
COMMENT ON FUNCTION {schema}.emit_row IS
    'Trigger for each row: emit_row(event, rooms, namespace, columns), for example (''order'', ''customer:{customer_id}'').';

CREATE OR REPLACE FUNCTION {schema}.emit_rows()
RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER {safely} AS $socketio$
DECLARE
    given record;
    tables record;
    described jsonb;
    most int;
    query text;
    parts text[] := '{}';
    one record;
BEGIN
    SELECT tgnewtable, tgoldtable INTO tables FROM pg_catalog.pg_trigger WHERE tgrelid = TG_RELID AND tgname = TG_NAME;
    IF TG_LEVEL <> 'STATEMENT' OR coalesce(tables.tgnewtable, tables.tgoldtable) IS NULL THEN
        RAISE EXCEPTION 'emit_rows is for triggers AFTER, REFERENCING a transition table, FOR EACH STATEMENT'
            USING ERRCODE = '39P01';
    END IF;
    given := {schema}._trigger_arguments(TG_ARGV);
    described := {schema}._described(TG_OP, TG_RELID, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    PERFORM {schema}._check_casts(TG_RELID);
    SELECT max_bytes INTO STRICT most FROM {schema}.settings;
    IF tables.tgnewtable IS NOT NULL THEN
        parts := parts || pg_catalog.format(
            'SELECT true AS is_new, pg_catalog.row_number() OVER () AS n, pg_catalog.to_jsonb(r.*) AS line FROM %I AS r',
            tables.tgnewtable);
    END IF;
    IF tables.tgoldtable IS NOT NULL THEN
        parts := parts || pg_catalog.format(
            'SELECT false AS is_new, pg_catalog.row_number() OVER () AS n, pg_catalog.to_jsonb(r.*) AS line FROM %I AS r',
            tables.tgoldtable);
    END IF;
    -- A client in two rooms must not be told that a row has left the one after it has entered the other. So old rows that
    -- move come first. Both transition tables have the rows in the order in which they were changed.
    query := 'SELECT rooms, is_later, pg_catalog.count(*) AS count,'
        ' coalesce(pg_catalog.jsonb_agg(line ORDER BY n) FILTER (WHERE is_new), ''[]'') AS new,'
        ' coalesce(pg_catalog.jsonb_agg(line ORDER BY n) FILTER (WHERE NOT is_new), ''[]'') AS old FROM ('
        'SELECT *, is_new OR ' || CASE WHEN pg_catalog.array_length(parts, 1) = 2 AND given.templates IS NOT NULL
            THEN 'pg_catalog.count(*) OVER (PARTITION BY n, rooms) = 2' ELSE 'true' END || ' AS is_later FROM ('
        'SELECT is_new, n, {schema}._columns_of(line, $2) AS line,'
        ' CASE WHEN $1 IS NULL THEN NULL WHEN is_new THEN {schema}._rooms_of(line, $1)'
        ' ELSE pg_catalog.array_remove({schema}._rooms_of(line, $1), '''') END AS rooms'
        ' FROM (' || pg_catalog.array_to_string(parts, ' UNION ALL ') || ') AS lines'
        ') AS addressed) AS ordered GROUP BY rooms, is_later ORDER BY is_later';
    FOR one IN EXECUTE query USING given.templates, given.names LOOP
        -- More than fits is told without the rows, and clients load again what they show.
        IF pg_catalog.octet_length(one.new::pg_catalog.text) + pg_catalog.octet_length(one.old::pg_catalog.text)
            > most - 1000 THEN
            one.new := NULL;
            one.old := NULL;
        END IF;
        PERFORM {schema}._emit(given.event, pg_catalog.jsonb_build_array(described || pg_catalog.jsonb_build_object(
            'count', one.count, 'new', one.new, 'old', one.old)), one.rooms, NULL, given.namespace);
    END LOOP;
    RETURN NULL;
END
$socketio$;
COMMENT ON FUNCTION {schema}.emit_rows IS
    'Trigger for each statement, with transition tables: emit_rows(event, rooms, namespace, columns).';

------------------------------------------------------------------------------------------------------ rights

CREATE OR REPLACE FUNCTION {schema}.set_signing_key(key pg_catalog.bytea)
RETURNS pg_catalog.void LANGUAGE plpgsql {safely} AS $socketio$
DECLARE
    inner_ bytea := '';
    outer_ bytea := '';
BEGIN
    IF pg_catalog.octet_length(key) < 16 THEN
        RAISE EXCEPTION 'the key has % bytes, and needs 16', pg_catalog.octet_length(key) USING ERRCODE = '22023';
    END IF;
    IF pg_catalog.octet_length(key) > 64 THEN
        key := pg_catalog.sha256(key);
    END IF;
    key := key || pg_catalog.decode(pg_catalog.repeat('00', 64 - pg_catalog.octet_length(key)), 'hex');
    FOR i IN 0 .. 63 LOOP
        inner_ := inner_ || pg_catalog.set_byte(E'\\x00', 0, pg_catalog.get_byte(key, i) # 54);
        outer_ := outer_ || pg_catalog.set_byte(E'\\x00', 0, pg_catalog.get_byte(key, i) # 92);
    END LOOP;
    UPDATE {schema}.settings SET inner_key = CASE WHEN key IS NOT NULL THEN inner_ END,
        outer_key = CASE WHEN key IS NOT NULL THEN outer_ END;
END
$socketio$;
COMMENT ON FUNCTION {schema}.set_signing_key IS
    'The signing_key of the cluster, of 16 bytes or more; NULL: messages are not signed. For the owner only.';

DO $socketio$
DECLARE
    made pg_catalog.regprocedure;
BEGIN
    FOR made IN SELECT oid FROM pg_catalog.pg_proc
        WHERE pronamespace = {schema_text}::pg_catalog.regnamespace AND proname = ANY (ARRAY[{names}])
    LOOP
        EXECUTE 'REVOKE ALL ON FUNCTION ' || made || ' FROM PUBLIC';
    END LOOP;
END
$socketio$;

UPDATE {schema}.settings SET version = {version};
