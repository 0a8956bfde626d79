-- A retired subscription: the name of the one that has taken its place, which runs a newer version of the projection.
ALTER TABLE {subscriptions} ADD COLUMN replaced_by pg_catalog.text;
