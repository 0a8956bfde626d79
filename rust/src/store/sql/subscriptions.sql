-- Where each durable subscription is; one row per partition.
CREATE TABLE {subscriptions} (
    name        pg_catalog.text NOT NULL,
    partition   int NOT NULL DEFAULT 0,
    partitions  int NOT NULL DEFAULT 1,
    position    bigint NOT NULL,
    -- Counts the owners: a checkpoint of an earlier one finds another number and changes nothing.
    epoch       bigint NOT NULL DEFAULT 0,
    owner       pg_catalog.text,
    lease_until pg_catalog.timestamptz,
    filter      pg_catalog.text NOT NULL DEFAULT '',
    is_paused   boolean NOT NULL DEFAULT false,
    updated_at  pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (name, partition)
);
-- Events that a subscription set aside after failing.
CREATE TABLE {parked} (
    name         pg_catalog.text NOT NULL,
    version      bigint NOT NULL,
    aggregate_id pg_catalog.text NOT NULL,
    attempts     int NOT NULL,
    last_error   pg_catalog.text,
    parked_at    pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (name, version)
);
