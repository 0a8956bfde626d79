-- Also for sessions that apply changes of another server, which skip ordinary triggers.
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {serial_trigger};
