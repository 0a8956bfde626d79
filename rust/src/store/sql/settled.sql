-- The newest event before which nothing can be added any more, as a reader has found it: where the next one begins. One
-- that is left of a table that was dropped does no harm.
CREATE TABLE IF NOT EXISTS {settled} (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    version bigint NOT NULL,
    id      pg_catalog.text NOT NULL
);
