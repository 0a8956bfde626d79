CREATE SCHEMA socketio;
CREATE TABLE socketio.settings (
    is_only_row       bool PRIMARY KEY DEFAULT true CHECK (is_only_row),
    version           int NOT NULL,
    channel           text NOT NULL,
    attachments       text NOT NULL,
    payload_threshold int NOT NULL,
    max_bytes         int NOT NULL CHECK (max_bytes > 0),
    inner_key         bytea,
    outer_key         bytea
);
INSERT INTO socketio.settings VALUES (true, 0, 'socket.io', 'public.socket_io_attachments', 8000, 1000);

CREATE FUNCTION socketio._old_publish(channel text, payload text) RETURNS void LANGUAGE sql AS
    'SELECT pg_notify($1, $2)';
CREATE FUNCTION socketio._compact(value jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT value::text';
CREATE FUNCTION socketio._msgpack_bytes(utf8 bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS 'SELECT utf8';
CREATE FUNCTION socketio.emit(
    event text, args jsonb DEFAULT '[]', rooms text[] DEFAULT NULL, except_ text[] DEFAULT NULL,
    namespace text DEFAULT '/')
RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM socketio._old_publish('socket.io#/', 'old');
END
$$;
CREATE FUNCTION socketio.leave(
    sockets text[], rooms text[], except_ text[] DEFAULT NULL, namespace text DEFAULT '/',
    everybody bool DEFAULT false)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN END $$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA socketio FROM PUBLIC;
