-- Turns the staging tables into products and orders.
-- Foreign records belong to a product without an opening on the log and without a row in the database: counted and left out.
CREATE TEMP TABLE foreigners AS
SELECT product_id, count(*) AS records
FROM (SELECT product_id FROM placed UNION ALL SELECT product_id FROM told) r
WHERE product_id NOT IN (SELECT product_id FROM opened UNION SELECT product_id FROM live)
GROUP BY product_id;
DELETE FROM placed WHERE product_id IN (SELECT product_id FROM foreigners);
DELETE FROM told WHERE product_id IN (SELECT product_id FROM foreigners);

CREATE TEMP TABLE stood AS
SELECT
    coalesce(p.order_id, t.order_id) AS id,
    coalesce(t.product_id, p.product_id) AS product_id,
    coalesce(t.user_id, p.user_id) AS user_id,
    coalesce(t.quantity, p.quantity) AS quantity,
    coalesce(t.total_cents / t.quantity, p.unit_price_cents) AS unit_price_cents,
    coalesce(t.currency, p.currency) AS currency,
    -- processing_payment is never stored; an order without a status has just been placed
    CASE WHEN t.status IN ('needs_reconciliation', 'confirmed', 'payment_failed', 'failed') THEN t.status
         ELSE 'awaiting_payment' END AS status,
    t.reason,
    coalesce(p.epoch, 0) AS epoch, coalesce(p.version, 0) AS version, coalesce(p.available, 0) AS available,
    p.key_hash, t.charge_started_at_ms, t.charge_answered_at_ms,
    coalesce(t.placed_at_ms, p.placed_at_ms) AS placed_at_ms
FROM (SELECT DISTINCT ON (order_id) * FROM placed ORDER BY order_id, epoch, version) p
FULL JOIN (SELECT DISTINCT ON (order_id) * FROM told ORDER BY order_id, status_rank DESC, at_ms) t USING (order_id);

INSERT INTO products (id, name, price_cents, currency, initial, epoch, taken)
SELECT DISTINCT ON (o.product_id)
    o.product_id, 'product ' || o.product_id, coalesce(s.price_cents, 0), coalesce(s.currency, ''), o.initial, o.epoch,
    coalesce(s.taken, 0)
FROM opened o
LEFT JOIN (
    SELECT product_id, max(unit_price_cents) AS price_cents, max(currency) AS currency,
        sum(quantity) FILTER (WHERE status NOT IN ('failed', 'payment_failed')) AS taken
    FROM stood GROUP BY product_id
) s USING (product_id)
ORDER BY o.product_id, o.epoch DESC;

INSERT INTO orders (id, product_id, user_id, quantity, unit_price_cents, currency, status, reason, epoch, version, available,
    key_hash, charge_started_at_ms, charge_answered_at_ms, placed_at_ms)
SELECT id, product_id, user_id, quantity, unit_price_cents, currency, status, reason, epoch, version, available,
    key_hash, charge_started_at_ms, charge_answered_at_ms, placed_at_ms
FROM stood;
