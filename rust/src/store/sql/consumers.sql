-- Who takes part in a durable subscription that several consumers share.
CREATE TABLE {consumers} (
    name        text NOT NULL,
    owner       text NOT NULL,
    lease_until timestamptz NOT NULL,
    PRIMARY KEY (name, owner)
);
