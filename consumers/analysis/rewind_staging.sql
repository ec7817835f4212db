-- What the log told, as it told it, copies and all: filled record by record, gone with the connection.
-- The copy judges by comparing, so nothing that the log says may keep it from being filled: neither a unit too many nor more
-- units than a column holds nor a product without an opening.
ALTER TABLE products DROP CONSTRAINT never_oversold, ALTER COLUMN taken TYPE bigint;
ALTER TABLE orders DROP CONSTRAINT orders_product_id_fkey;
CREATE TEMP TABLE placed (
    order_id uuid, product_id integer, user_id bigint, quantity integer, unit_price_cents bigint, currency text,
    placed_at_ms bigint, epoch bigint, version bigint, available integer, key_hash text
);
CREATE TEMP TABLE told (
    order_id uuid, product_id integer, user_id bigint, quantity integer, total_cents bigint, currency text,
    status text, status_rank integer, reason text, placed_at_ms bigint, at_ms bigint,
    charge_started_at_ms bigint, charge_answered_at_ms bigint
);
CREATE TEMP TABLE opened (product_id integer, epoch bigint, initial integer, opened_at_ms bigint);
-- Products of the live database.
CREATE TEMP TABLE live (product_id integer);
