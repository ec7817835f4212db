-- accepted orders that wait for their product's books, so that the log need not wait for them
-- depends: 20261201_01_amounts_and_hands

-- migrate: apply

-- Records of order.placed made by books that are gone, read while no others were in force: what they took must be taken
-- again. A rebuild reads them as it reads the log; the relay sends them again once books are in force, and deletes the row.
-- An order may have several rows: each says that this record, so far, has led to nothing.
CREATE TABLE parked_orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id integer NOT NULL REFERENCES products ON DELETE CASCADE,
    record bytea NOT NULL, -- the value of order.placed
    parked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX parked_orders_of_product ON parked_orders (product_id, id);

-- migrate: rollback

DROP TABLE parked_orders;
