-- both batches find orders by id, whatever the planner thinks of a table that was empty when a session planned them
-- depends: 20261126_02_unknown_payments

-- migrate: apply

-- A plan made in the first minute of a sale lives as long as its session. It read every order that awaits its payment
-- (orders_unpaid) for each batch, so a batch cost more the longer the backlog was. The guard names what is final, not what
-- is open: no index stands for that condition, so only the id finds a row.
CREATE OR REPLACE FUNCTION settle_orders(
    ids uuid[], statuses text[], reasons text[], charge_ids text[], started bigint[], answered bigint[]
) RETURNS SETOF orders
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
    PERFORM 1 FROM products p
    WHERE p.id IN (SELECT o.product_id FROM orders o JOIN unnest(ids, statuses) AS i (id, status) USING (id)
                   WHERE i.status IN ('payment_failed', 'failed'))
    ORDER BY p.id FOR UPDATE;
    PERFORM 1 FROM orders o WHERE o.id = ANY (ids) ORDER BY o.id FOR UPDATE;
    WITH changed AS (
        UPDATE orders o
        SET status = i.status, reason = i.reason, charge_id = i.charge_id, updated_at = clock_timestamp(),
            charge_started_at_ms = coalesce(o.charge_started_at_ms, i.started), charge_answered_at_ms = i.answered
        FROM unnest(ids, statuses, reasons, charge_ids, started, answered)
            AS i (id, status, reason, charge_id, started, answered)
        WHERE o.id = i.id AND o.status NOT IN ('confirmed', 'payment_failed', 'failed') AND o.status <> i.status
        RETURNING o.product_id, o.quantity, o.status
    )
    UPDATE products p SET taken = p.taken - s.units, updated_at = now()
    FROM (SELECT c.product_id, sum(c.quantity) AS units FROM changed c
          WHERE c.status IN ('payment_failed', 'failed') GROUP BY 1) s
    WHERE p.id = s.product_id;
    RETURN QUERY SELECT o.* FROM orders o WHERE o.id = ANY (ids);
END $$;

ALTER FUNCTION place_orders SET enable_seqscan = off;
ALTER FUNCTION place_orders SET enable_hashjoin = off;
ALTER FUNCTION place_orders SET enable_mergejoin = off;

-- migrate: rollback

ALTER FUNCTION place_orders RESET ALL;
ALTER FUNCTION settle_orders RESET ALL;
