-- what operators do to a sale, and which dead letters they have sent again
-- depends: 20261122_01_books

-- migrate: apply

ALTER TABLE products
    ADD COLUMN sale_state text NOT NULL DEFAULT 'open' CHECK (sale_state IN ('open', 'paused')),
    ADD COLUMN sale_action bigint NOT NULL DEFAULT 0; -- the newest of sale_actions: Redis takes no older one after it

-- The audit trail: who did what to a sale, when and why. Rows are only ever added.
CREATE TABLE sale_actions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id integer NOT NULL REFERENCES products ON DELETE CASCADE,
    action text NOT NULL CHECK (action IN ('pause', 'resume', 'close', 'restock')),
    units integer CHECK ((action = 'restock') = (units IS NOT NULL) AND units > 0),
    who text NOT NULL,
    why text NOT NULL,
    key_hash text, -- of the Idempotency-Key: a repeated request is found done
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (product_id, who, key_hash)
);
CREATE INDEX sale_actions_of_product ON sale_actions (product_id, id DESC);

-- Dead letters that were sent again, written after the broker's acknowledgement. A letter is known by its append time too:
-- offsets begin anew when the log is wiped.
CREATE TABLE redriven_letters (
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    appended_at_ms bigint NOT NULL,
    who text NOT NULL,
    order_id uuid, -- the failed order, where the letter was its order.placed
    new_order_id uuid, -- and the order made in its place
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (partition, "offset", appended_at_ms)
);
CREATE INDEX redriven_orders ON redriven_letters (order_id) WHERE order_id IS NOT NULL;

-- migrate: rollback

DROP TABLE redriven_letters;
DROP TABLE sale_actions;
ALTER TABLE products DROP COLUMN sale_state, DROP COLUMN sale_action;
