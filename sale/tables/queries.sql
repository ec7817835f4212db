-- Named statements; each stands under `-- name:` and is loaded by queries.py. Arguments are positional ($1, ...).

-- name: place_orders
SELECT order_id::text, outcome, status, unit_price_cents, currency
FROM place_orders($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: fail_order
-- An order whose reservation no books confirm and that could not be reserved again: recorded, never charged.
INSERT INTO orders (id, product_id, user_id, quantity, unit_price_cents, currency, status, reason, epoch, version, available,
    key_hash, placed_at_ms, key_lost)
SELECT $1, p.id, $3, $4, p.price_cents, p.currency, 'failed', $5, $6, $7, $8, $9, $10, $11 FROM products p WHERE p.id = $2
ON CONFLICT (id) DO NOTHING;

-- name: park_orders
-- $2: values of order.placed.
INSERT INTO parked_orders (product_id, record) SELECT $1, record FROM unnest($2::bytea[]) AS record;

-- name: parked_orders
SELECT record FROM parked_orders WHERE product_id = $1;

-- name: parked_to_send
-- The oldest orders of each product, so that no product waits for another.
SELECT p.id, p.record FROM unnest($1::integer[]) AS product,
LATERAL (SELECT id, record FROM parked_orders WHERE product_id = product ORDER BY id LIMIT $2) AS p;

-- name: unpark_orders
DELETE FROM parked_orders WHERE id = ANY ($1);

-- name: settle_orders
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    clock_timestamp() AS read_at, charge_started_at_ms, charge_answered_at_ms
FROM settle_orders($1, $2, $3, $4, $5, $6);

-- name: orders_by_id
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    clock_timestamp() AS read_at, charge_started_at_ms, charge_answered_at_ms
FROM orders WHERE id = ANY ($1);

-- name: orders_of_user
-- Newest first; with a cursor ($2) only older orders.
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    charge_started_at_ms, charge_answered_at_ms
FROM orders WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3;

-- name: unsettled_payments
-- The orders that the reconciler asks the provider about, oldest first; after the key's lifetime ($1, an interval)
-- only an operator settles.
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    clock_timestamp() AS read_at, charge_started_at_ms, charge_answered_at_ms
FROM orders WHERE status = 'needs_reconciliation' AND created_at > now() - $1::interval
    AND (by_hand_since IS NULL OR by_hand_since < now() - interval '10 minutes') -- an operator who never finished
ORDER BY updated_at LIMIT $2;

-- name: take_in_hand
-- Takes an order from the reconciler if its payment is unknown and the provider may have forgotten it ($2), or early ($3).
UPDATE orders SET by_hand_since = now()
WHERE id = $1 AND status = 'needs_reconciliation' AND ($3 OR created_at <= now() - $2::interval) RETURNING id;

-- name: expired_payments
-- The number of orders that only an operator can settle.
SELECT count(*) FROM orders WHERE status = 'needs_reconciliation' AND created_at <= now() - $1::interval;

-- name: product
SELECT id, name, price_cents, currency, initial, taken, epoch, verified_at, opens_at, closes_at, per_user_limit, max_quantity,
    sale_state, sale_action, created_at, updated_at, clock_timestamp() AS read_at
FROM products WHERE id = $1;

-- name: products
SELECT id, name, price_cents, currency, initial, taken, epoch, verified_at, opens_at, closes_at, per_user_limit, max_quantity,
    sale_state, sale_action, created_at, updated_at, clock_timestamp() AS read_at
FROM products ORDER BY id;

-- name: create_product
INSERT INTO products (id, name, price_cents, currency, initial, opens_at, closes_at, per_user_limit, max_quantity)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING RETURNING id;

-- name: draw_epoch
-- Runs before a rebuild reads anything: from then on a record of an older epoch counts only with a held entry.
UPDATE products SET epoch = epoch + 1, updated_at = now() WHERE id = $1 RETURNING epoch, log_lost;

-- name: note_lost_log
-- The log has lost its older records: the next opening says so.
UPDATE products SET log_lost = true, updated_at = now() WHERE id = $1;

-- name: lost_log_is_told
-- Not if a later rebuild has begun: it says so too.
UPDATE products SET log_lost = false, updated_at = now() WHERE id = $1 AND epoch = $2;

-- name: mark_verified
-- Rejects a mark in the future: the clock was set back, and orders that end now would be dated before the mark.
UPDATE products SET verified_at = $2, updated_at = now() WHERE id = $1 AND $2 <= clock_timestamp();

-- name: rebuild_rows
-- The orders that count as held: those that are not terminal, and those that ended since a minute before the books were last
-- verified (they are settled and announced again on the ordinary path). A mark in the future is ignored: the clock was set
-- back, and orders that ended afterwards are dated before the mark.
SELECT o.id::text, o.product_id, o.user_id, o.quantity, o.unit_price_cents, o.currency, o.status, o.epoch, o.version, o.available,
    o.key_hash, o.placed_at_ms, o.created_at, o.updated_at
FROM orders o JOIN products p ON p.id = o.product_id
WHERE o.product_id = $1
  AND (o.status IN ('awaiting_payment', 'needs_reconciliation')
       OR p.verified_at IS NULL OR p.verified_at > clock_timestamp() OR o.updated_at > p.verified_at - interval '1 minute');

-- name: rebuild_rows_by_id
-- The same columns for orders that Redis or the log has.
SELECT o.id::text, o.product_id, o.user_id, o.quantity, o.unit_price_cents, o.currency, o.status, o.epoch, o.version, o.available,
    o.key_hash, o.placed_at_ms, o.created_at, o.updated_at
FROM orders o WHERE o.id = ANY ($1);

-- name: rebuild_keys
-- Accepted orders that an Idempotency-Key must still find; $2 is the oldest placed_at_ms. An order keeps its key after any
-- end, unless the key was lost with the books and another order may have taken it. `orders_of_keys` has the same rule.
SELECT id::text, user_id, key_hash, quantity, placed_at_ms FROM orders
WHERE product_id = $1 AND key_hash IS NOT NULL AND NOT key_lost AND placed_at_ms > $2;

-- name: orders_of_keys
-- Orders that hold one of these Idempotency-Keys (users and hashes by position): the rule of `rebuild_keys`.
SELECT o.id::text, o.user_id, o.key_hash FROM unnest($1::bigint[], $2::text[]) AS k (user_id, key_hash)
JOIN orders o ON o.user_id = k.user_id AND o.key_hash = k.key_hash
WHERE NOT o.key_lost AND o.placed_at_ms > $3;

-- name: earliest_end
-- The earliest end among these orders.
SELECT min(updated_at) FROM orders WHERE id = ANY ($1) AND status IN ('confirmed', 'payment_failed', 'failed');

-- name: ended_since
-- Orders that ended after a rebuild began ($2, in the future if the clock was set back meanwhile): its snapshot may have
-- missed their end. A rebuild takes at most five minutes.
SELECT id::text FROM orders
WHERE product_id = $1 AND status IN ('confirmed', 'payment_failed', 'failed')
  AND updated_at > CASE WHEN $2 <= clock_timestamp() THEN $2 ELSE clock_timestamp() - interval '5 minutes' END;

-- name: units_by_user
-- Units of live and confirmed orders, for the per-user limit.
SELECT user_id, sum(quantity)::bigint AS units FROM orders
WHERE product_id = $1 AND status NOT IN ('failed', 'payment_failed') GROUP BY user_id;

-- name: units_by_status
SELECT status, count(*) AS orders, sum(quantity)::bigint AS units FROM orders WHERE product_id = $1 GROUP BY status;

-- name: user_by_email
SELECT id, name, email, password_hash, role FROM users WHERE email = $1;

-- name: user_by_id
SELECT id, name, email, role FROM users WHERE id = $1;

-- name: create_user
INSERT INTO users (name, email, password_hash, role) VALUES ($1, $2, $3, $4) ON CONFLICT (email) DO NOTHING RETURNING id;

-- name: demote_operator
UPDATE users SET role = 'user' WHERE email = $1 AND role = 'operator' RETURNING id;

-- name: create_bulk_users
-- Creates load-test users number $1 to $2, who cannot log in. Their emails are fixed, so a repetition finds them.
INSERT INTO users (name, email, password_hash)
SELECT 'Buyer ' || n, 'buyer-' || n || '@load.invalid', $3 FROM generate_series($1::integer, $2::integer) AS n
ON CONFLICT (email) DO NOTHING;

-- name: bulk_user_ids
SELECT u.id FROM generate_series($1::integer, $2::integer) AS n JOIN users u ON u.email = 'buyer-' || n || '@load.invalid'
ORDER BY n;

-- name: audit_orders
SELECT id::text, user_id, quantity, unit_price_cents, currency, status, reason, epoch, placed_at_ms, key_hash,
    (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms, (extract(epoch FROM updated_at) * 1000)::bigint AS updated_at_ms
FROM orders WHERE product_id = $1;

-- name: unended_orders
SELECT product_id, status, count(*) AS orders FROM orders
WHERE status IN ('awaiting_payment', 'needs_reconciliation') AND product_id = ANY ($1) GROUP BY product_id, status
UNION ALL
SELECT product_id, 'parked', count(*) FROM parked_orders WHERE product_id = ANY ($1) GROUP BY product_id;

-- name: sale_for_change
SELECT sale_state, initial, closes_at IS NOT NULL AND closes_at <= now() AS over FROM products WHERE id = $1 FOR UPDATE;

-- name: claim_sale_key
-- Returns no row if the key was used before. It waits for a concurrent claim.
INSERT INTO sale_keys (who, key_hash, product_id, action, units, why) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING RETURNING key_hash;

-- name: command_of_sale_key
SELECT product_id, action, units, why FROM sale_keys WHERE who = $1 AND key_hash = $2;

-- name: add_sale_action
INSERT INTO sale_actions (product_id, action, units, who, why) VALUES ($1, $2, $3, $4, $5) RETURNING id;

-- name: add_acknowledgement
INSERT INTO sale_actions (product_id, action, who, why, findings) VALUES ($1, 'acknowledge', $2, $3, $4)
RETURNING id, (extract(epoch FROM at) * 1000)::bigint AS at_ms;

-- name: apply_sale_action
-- $2 pause, resume, close or restock; $3 the action's id; $4 units to add.
UPDATE products SET sale_action = $3, updated_at = now(),
    sale_state = CASE $2 WHEN 'pause' THEN 'paused' WHEN 'resume' THEN 'open' ELSE sale_state END,
    opens_at = CASE WHEN $2 = 'close' AND opens_at > now() THEN now() ELSE opens_at END,
    closes_at = CASE WHEN $2 = 'close' THEN least(closes_at, now()) ELSE closes_at END,
    initial = initial + CASE WHEN $2 = 'restock' THEN $4::integer ELSE 0 END
WHERE id = $1;

-- name: sale_actions
-- Newest first.
SELECT id, action, units, who, why, at FROM sale_actions WHERE product_id = $1 ORDER BY id DESC LIMIT $2;

-- name: unpublished_sale_actions
-- Oldest first.
SELECT id, product_id, action, units, who, why, findings, (extract(epoch FROM at) * 1000)::bigint AS at_ms FROM sale_actions
WHERE published_at IS NULL ORDER BY id LIMIT $1;

-- name: mark_sale_actions_published
UPDATE sale_actions SET published_at = clock_timestamp() WHERE id = ANY ($1);

-- name: redriven_letters
SELECT partition, "offset", appended_at_ms, who, order_id::text, new_order_id::text, ended_at_offset, at FROM redriven_letters;

-- name: redriven_order
-- The new order in place of a failed one.
SELECT new_order_id::text FROM redriven_letters WHERE order_id = $1 AND new_order_id IS NOT NULL LIMIT 1;

-- name: mark_redriven
INSERT INTO redriven_letters (partition, "offset", appended_at_ms, who, order_id, new_order_id, ended_at_offset)
VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING;

-- name: resolved_letters
SELECT partition, "offset", appended_at_ms, who, why, at FROM resolved_letters;

-- name: resolve_letter
-- The first reason stays.
INSERT INTO resolved_letters (partition, "offset", appended_at_ms, who, why) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING;
