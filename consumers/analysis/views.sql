-- The views for analysts. `events` has one row per record, copies included; the views have one row per fact.
-- `status_ranks` comes from schemas/order_state.py. Times without `_ms` are timestamps in UTC.

-- Milliseconds as a timestamp; null after the year 9999.
CREATE MACRO moment(ms) AS CASE WHEN ms BETWEEN 0 AND 253402300799999 THEN epoch_ms(ms) END;

-- Answers that clients received; empty without a client log. Outcome A: accepted, U: unknown, R: refused.
CREATE TABLE answers (answered_at TIMESTAMP, outcome VARCHAR, product_id INTEGER);

-- The first reservation of each order; an order placed again in a newer epoch counts once.
CREATE VIEW placements AS
SELECT *, count(*) OVER (PARTITION BY order_id) AS records
FROM events WHERE type = 'order.placed' AND topic = 'orders'
QUALIFY row_number() OVER (PARTITION BY order_id ORDER BY epoch, version, "partition", "offset") = 1;

-- The current status of each order: the one with the highest rank.
CREATE VIEW standings AS
SELECT e.*, count(*) FILTER (WHERE r.terminal) OVER (PARTITION BY order_id) AS end_records
FROM events e JOIN status_ranks r USING (status) WHERE e.type = 'order.status' AND e.topic = 'order-status'
QUALIFY row_number() OVER (PARTITION BY order_id ORDER BY r.rank DESC, e.epoch NULLS LAST, e.version, e."offset") = 1;

-- One row per order.
CREATE VIEW orders AS
SELECT
    order_id,
    coalesce(p.product_id, s.product_id) AS product_id,
    coalesce(p.user_id, s.user_id) AS user_id,
    coalesce(p.quantity, s.quantity) AS quantity,
    coalesce(p.unit_price_cents, s.total_cents // s.quantity) AS unit_price_cents,
    coalesce(s.total_cents, TRY(p.unit_price_cents * p.quantity)) AS total_cents,
    coalesce(p.currency, s.currency) AS currency,
    coalesce(s.status, 'queued') AS status,
    coalesce(r.terminal, false) AS ended,
    s.reason,
    moment(coalesce(p.placed_at_ms, s.placed_at_ms)) AS placed_at,
    CASE WHEN r.terminal THEN moment(s.at_ms) END AS ended_at,
    CASE WHEN r.terminal THEN s.at_ms - s.placed_at_ms END AS took_ms,
    p.epoch,
    p.version,
    p.available,
    coalesce(p.records, 0) AS placed_records, -- more than 1: published again
    coalesce(s.end_records, 0) AS end_records,
    p.redriven_from
FROM placements p FULL JOIN standings s USING (order_id) LEFT JOIN status_ranks r ON r.status = s.status;

-- One row per product. `opened` is false if these records have no opening of its stock: either it is older than these records,
-- or the product was never put on sale and its records are a mistake.
CREATE VIEW products AS
SELECT
    product_id, o.name, o.product_id IS NOT NULL AS opened, o.initial, coalesce(o.epochs, 0) AS epochs,
    coalesce(p.orders, 0) AS orders
FROM (
    SELECT product_id, arg_max(name, epoch) AS name, arg_max(initial, epoch) AS initial, count(DISTINCT epoch) AS epochs
    FROM events WHERE type = 'stock.opened' AND topic = 'orders' GROUP BY product_id
) o
FULL JOIN (SELECT product_id, count(*) AS orders FROM orders GROUP BY product_id) p USING (product_id);

-- One row per order whose payment was requested.
CREATE VIEW payments AS
SELECT
    q.order_id, q.product_id, o.total_cents, o.currency,
    moment(q.requested_at_ms) AS requested_at,
    q.requests, -- more than 1: requested again
    moment(s.charge_started_at_ms) AS charge_started_at,
    moment(s.charge_answered_at_ms) AS charge_answered_at,
    s.charge_answered_at_ms - s.charge_started_at_ms AS charge_ms,
    o.status AS outcome,
    s.reason
FROM (
    SELECT order_id, any_value(product_id) AS product_id, min(requested_at_ms) AS requested_at_ms, count(*) AS requests
    FROM events WHERE type = 'payment.requested' AND topic = 'payments' GROUP BY order_id
) q
LEFT JOIN orders o USING (order_id) LEFT JOIN standings s USING (order_id);

-- One row per order and status, with the time since the previous status.
CREATE VIEW order_history AS
WITH passed AS (
    SELECT order_id, product_id, 'queued' AS status, placed_at_ms AS at_ms FROM placements
    UNION ALL
    SELECT order_id, product_id, status, at_ms FROM events WHERE type = 'order.status' AND topic = 'order-status'
    UNION ALL
    SELECT order_id, product_id, step.status, step.at_ms
    FROM (
        SELECT order_id, product_id, unnest(from_json(steps, '[{"status": "VARCHAR", "at_ms": "BIGINT"}]')) AS step
        FROM events WHERE type = 'order.status' AND topic = 'order-status' AND steps IS NOT NULL
    )
), firsts AS (
    SELECT order_id, any_value(product_id) AS product_id, status, min(at_ms) AS at_ms FROM passed GROUP BY order_id, status
)
SELECT
    order_id, product_id, row_number() OVER steps AS step, status, moment(at_ms) AS happened_at,
    at_ms - lag(at_ms) OVER steps AS since_previous_ms
FROM firsts JOIN status_ranks USING (status)
WINDOW steps AS (PARTITION BY order_id ORDER BY rank, at_ms);

-- One row per change of a product's stock, ordered by (epoch, version). Version 0 opens an epoch.
CREATE VIEW stock_timeline AS
SELECT
    product_id, epoch, version, moment(at_ms) AS happened_at, kind, change, available, order_id,
    min(available) OVER (PARTITION BY product_id, epoch) AS epoch_low
FROM (
    SELECT product_id, epoch, 0 AS version, opened_at_ms AS at_ms, 'opened' AS kind, NULL::BIGINT AS change, available,
        NULL AS order_id, "offset"
    FROM events WHERE type = 'stock.opened' AND topic = 'orders'
    UNION ALL
    SELECT product_id, epoch, version, placed_at_ms, 'placed', -quantity, available, order_id, "offset"
    FROM events WHERE type = 'order.placed' AND topic = 'orders'
    UNION ALL
    SELECT e.product_id, e.epoch, e.version, e.at_ms, CASE e.status WHEN 'confirmed' THEN 'sold' ELSE 'released' END,
        coalesce(e.returned, 0), e.available, e.order_id, e."offset"
    FROM events e JOIN status_ranks r USING (status) WHERE e.type = 'order.status' AND e.topic = 'order-status' AND r.terminal AND e.version IS NOT NULL
)
QUALIFY row_number() OVER (PARTITION BY product_id, epoch, version ORDER BY at_ms, "offset") = 1
ORDER BY product_id, epoch, version;

-- Orders that reached each step, by product. `share` is relative to the orders placed.
CREATE VIEW funnel AS
WITH passed AS (
    SELECT o.product_id, o.order_id, o.quantity, h.status
    FROM orders o JOIN order_history h USING (order_id)
    WHERE h.status NOT IN ('processing', 'pending')
), counted AS (
    SELECT product_id, status, count(*) AS orders, sum(quantity)::BIGINT AS units FROM passed GROUP BY product_id, status
)
SELECT
    product_id, status, orders, units,
    round(orders / max(orders) FILTER (WHERE status = 'queued') OVER (PARTITION BY product_id), 4) AS share
FROM counted JOIN status_ranks USING (status)
ORDER BY product_id, rank, status;
