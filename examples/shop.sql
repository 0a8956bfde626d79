-- The table of examples/shop_app.py, and the trigger that tells its clients. Needs the SQL functions:
-- socketio-postgres sql --functions | psql -1

CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    item        text NOT NULL,
    status      text NOT NULL DEFAULT 'new',
    margin      numeric  -- no client ever sees it
);

CREATE TRIGGER orders_live AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW
    EXECUTE FUNCTION socketio.emit_row('order', 'customer:{customer_id}', '/', 'id,item,status');

INSERT INTO orders (customer_id, item, margin) VALUES (7, 'tea', 0.4), (7, 'biscuits', 0.2), (8, 'coffee', 0.5);
