-- The statements behind the report. $products is the list of its products.

-- name: products
SELECT product_id, name, opened, orders FROM products WHERE orders > 0 ORDER BY orders DESC, product_id;

-- name: numbers
SELECT
    count(*) AS orders, sum(quantity)::BIGINT AS units, count(DISTINCT user_id) AS buyers,
    coalesce(sum(quantity) FILTER (WHERE status = 'confirmed'), 0)::BIGINT AS confirmed_units,
    coalesce(sum(total_cents) FILTER (WHERE status = 'confirmed'), 0) AS confirmed_cents,
    count(*) FILTER (WHERE status IN ('payment_failed', 'failed')) AS declined,
    count(*) FILTER (WHERE NOT ended) AS under_way,
    min(placed_at) AS first_at, greatest(max(placed_at), max(ended_at)) AS last_at,
    quantile_cont(took_ms, 0.5) AS p50_ms, quantile_cont(took_ms, 0.95) AS p95_ms, quantile_cont(took_ms, 0.99) AS p99_ms,
    any_value(currency) AS currency
FROM orders WHERE list_contains($products, product_id);

-- name: refused
SELECT count(*) FILTER (WHERE outcome = 'R'), count(*) FROM answers WHERE list_contains($products, product_id);

-- name: books
SELECT sum(opened)::BIGINT AS initial, min(lowest) AS lowest, sum(missing)::BIGINT AS missing
FROM (
    SELECT product_id, epoch, min(available) AS lowest, max(version) + 1 - count(*) AS missing,
        CASE WHEN epoch = min(epoch) OVER (PARTITION BY product_id) THEN arg_min(available, version) END AS opened
    FROM stock_timeline WHERE list_contains($products, product_id) GROUP BY product_id, epoch
);

-- name: stock
-- The last stock in each of up to 600 slices of time; times are seconds since the first order.
WITH span AS (SELECT min(happened_at) AS first, greatest(date_diff('ms', min(happened_at), max(happened_at)), 600) AS ms
              FROM stock_timeline WHERE kind <> 'opened' AND list_contains($products, product_id)),
began AS (SELECT min(placed_at) AS at FROM orders WHERE list_contains($products, product_id))
SELECT product_id, greatest(date_diff('ms', any_value(began.at), arg_max(happened_at, (epoch, version))), 0) / 1000 AS at_s,
    arg_max(available, (epoch, version)) AS available
FROM stock_timeline, span, began
WHERE list_contains($products, product_id) AND happened_at >= first
GROUP BY product_id, date_diff('ms', first, happened_at) * 600 // ms
ORDER BY product_id, at_s;

-- name: rates
-- Orders per second, in slices of $width seconds since the first order.
WITH first AS (SELECT min(placed_at) AS began_at FROM orders WHERE list_contains($products, product_id)),
told AS (
    SELECT placed_at AS happened_at, 'accepted' AS kind FROM orders WHERE list_contains($products, product_id)
    UNION ALL
    SELECT ended_at, CASE status WHEN 'confirmed' THEN 'confirmed' ELSE 'given back' END
    FROM orders WHERE ended AND list_contains($products, product_id)
    UNION ALL
    SELECT greatest(answered_at, first.began_at), 'refused'
    FROM answers, first WHERE outcome = 'R' AND list_contains($products, product_id)
)
SELECT kind, date_diff('ms', first.began_at, told.happened_at) // ($width * 1000) AS slice, count(*) / $width AS a_second
FROM told, first GROUP BY kind, slice ORDER BY kind, slice;

-- name: delays
SELECT status, count(*) AS orders, quantile_cont(since_previous_ms, 0.5) AS p50, quantile_cont(since_previous_ms, 0.95) AS p95,
    quantile_cont(since_previous_ms, 0.99) AS p99
FROM order_history JOIN status_ranks USING (status)
WHERE since_previous_ms IS NOT NULL AND list_contains($products, product_id) AND status NOT IN ('pending', 'awaiting_payment')
GROUP BY status ORDER BY any_value(rank), status;

-- name: funnel
SELECT status, sum(orders)::BIGINT AS orders, sum(units)::BIGINT AS units
FROM funnel JOIN status_ranks USING (status) WHERE list_contains($products, product_id)
GROUP BY status ORDER BY any_value(rank), status;
