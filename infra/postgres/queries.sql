-- Named statements; each stands under `-- name:` and is loaded by queries.py. Arguments are positional ($1, ...).

-- name: place_orders
SELECT order_id::text, outcome, status, unit_price_cents, currency
FROM place_orders($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: fail_order
-- A reservation that no books vouch for and that could not be made again: recorded, never charged.
INSERT INTO orders (id, product_id, user_id, quantity, unit_price_cents, currency, status, reason, epoch, version, available,
    key_hash, placed_at_ms)
SELECT $1, p.id, $3, $4, p.price_cents, p.currency, 'failed', $5, $6, $7, $8, $9, $10 FROM products p WHERE p.id = $2
ON CONFLICT (id) DO NOTHING;

-- name: settle_orders
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    charge_started_at_ms, charge_answered_at_ms
FROM settle_orders($1, $2, $3, $4, $5, $6);

-- name: orders_by_id
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    charge_started_at_ms, charge_answered_at_ms
FROM orders WHERE id = ANY ($1);

-- name: orders_of_user
-- Newest first, older than the cursor ($2) where one is given.
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    charge_started_at_ms, charge_answered_at_ms
FROM orders WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3;

-- name: unsettled_payments
-- What the reconciler asks the provider about, oldest first.
SELECT id::text, product_id, user_id, quantity, unit_price_cents, currency, status, reason, placed_at_ms, created_at, updated_at,
    charge_started_at_ms, charge_answered_at_ms
FROM orders WHERE status = 'needs_reconciliation' ORDER BY updated_at LIMIT $1;

-- name: product
SELECT id, name, price_cents, currency, initial, taken, epoch, verified_at, opens_at, closes_at, per_user_limit, created_at, updated_at
FROM products WHERE id = $1;

-- name: products
SELECT id, name, price_cents, currency, initial, taken, epoch, verified_at, opens_at, closes_at, per_user_limit, created_at, updated_at
FROM products ORDER BY id;

-- name: create_product
INSERT INTO products (id, name, price_cents, currency, initial, opens_at, closes_at, per_user_limit)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING RETURNING id;

-- name: draw_epoch
-- Before a rebuild reads anything: from now on records of older books need a held entry to be believed.
UPDATE products SET epoch = epoch + 1, updated_at = now() WHERE id = $1 RETURNING epoch;

-- name: mark_verified
UPDATE products SET verified_at = $2, updated_at = now() WHERE id = $1;

-- name: rebuild_rows
-- What counts as held: every order that is not terminal, and every one that ended since the books were last verified less a
-- minute (those are settled and announced again, the ordinary way).
SELECT o.id::text, o.product_id, o.user_id, o.quantity, o.unit_price_cents, o.currency, o.status, o.epoch, o.version, o.available,
    o.key_hash, o.placed_at_ms, o.created_at, o.updated_at
FROM orders o JOIN products p ON p.id = o.product_id
WHERE o.product_id = $1
  AND (o.status IN ('awaiting_payment', 'needs_reconciliation')
       OR o.updated_at > coalesce(p.verified_at, '-infinity') - interval '1 minute');

-- name: rebuild_rows_by_id
-- The same columns for orders that Redis or the log knows of.
SELECT o.id::text, o.product_id, o.user_id, o.quantity, o.unit_price_cents, o.currency, o.status, o.epoch, o.version, o.available,
    o.key_hash, o.placed_at_ms, o.created_at, o.updated_at
FROM orders o WHERE o.id = ANY ($1);

-- name: rebuild_keys
-- Acceptances that an Idempotency-Key must still find; $2 is the oldest placed_at_ms.
SELECT id::text, user_id, key_hash, quantity, placed_at_ms FROM orders
WHERE product_id = $1 AND key_hash IS NOT NULL AND placed_at_ms > $2;

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

-- name: create_bulk_users
-- Load-test users number $1 to $2, who cannot log in: stable emails, so that a repetition finds them.
INSERT INTO users (name, email, password_hash)
SELECT 'Buyer ' || n, 'buyer-' || n || '@load.invalid', $3 FROM generate_series($1::integer, $2::integer) AS n
ON CONFLICT (email) DO NOTHING;

-- name: bulk_user_ids
SELECT u.id FROM generate_series($1::integer, $2::integer) AS n JOIN users u ON u.email = 'buyer-' || n || '@load.invalid'
ORDER BY n;

-- name: audit_orders
SELECT id::text, user_id, quantity, unit_price_cents, currency, status, epoch, placed_at_ms, key_hash
FROM orders WHERE product_id = $1;

-- name: unended_orders
SELECT product_id, status, count(*) AS orders FROM orders
WHERE status IN ('awaiting_payment', 'needs_reconciliation') AND product_id = ANY ($1) GROUP BY product_id, status;
