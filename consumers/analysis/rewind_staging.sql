-- Staging tables for the records of the log, copies included; they end with the connection.
-- The comparison finds the errors, so no constraint may stop the log from being loaded: not an oversold unit, not more units
-- than a column holds, not a product without an opening.
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
