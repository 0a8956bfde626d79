-- Who takes part in a durable subscription that several consumers share.
CREATE TABLE {consumers} (
    name        pg_catalog.text NOT NULL,
    owner       pg_catalog.text NOT NULL,
    lease_until pg_catalog.timestamptz NOT NULL,
    PRIMARY KEY (name, owner)
);
