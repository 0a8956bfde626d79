-- Where each durable subscription is; one row per partition.
CREATE TABLE {subscriptions} (
    name        text NOT NULL,
    partition   int NOT NULL DEFAULT 0,
    partitions  int NOT NULL DEFAULT 1,
    position    bigint NOT NULL,
    -- Counts the owners: a checkpoint of an earlier one finds another number and changes nothing.
    epoch       bigint NOT NULL DEFAULT 0,
    owner       text,
    lease_until timestamptz,
    filter      text NOT NULL DEFAULT '',
    is_paused   boolean NOT NULL DEFAULT false,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, partition)
);
-- Events that a subscription set aside after failing.
CREATE TABLE {parked} (
    name         text NOT NULL,
    version      bigint NOT NULL,
    aggregate_id text NOT NULL,
    attempts     int NOT NULL,
    last_error   text,
    parked_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, version)
);
