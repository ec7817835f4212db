-- users, products and orders; the functions through which alone orders change
-- depends:

-- migrate: apply

CREATE TABLE users (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL UNIQUE, -- stored in lower case
    password_hash text NOT NULL,
    role text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'operator')),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE products (
    id integer PRIMARY KEY,
    name text NOT NULL,
    price_cents bigint NOT NULL CHECK (price_cents >= 0),
    currency text NOT NULL,
    initial integer NOT NULL CHECK (initial >= 0),
    taken integer NOT NULL DEFAULT 0, -- units of orders that are neither failed nor payment_failed
    epoch bigint NOT NULL DEFAULT 0, -- of the newest books, drawn by a rebuild before it reads anything
    verified_at timestamptz, -- when these books were last put in force
    opens_at timestamptz,
    closes_at timestamptz,
    per_user_limit integer CHECK (per_user_limit > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT never_oversold CHECK (taken BETWEEN 0 AND initial)
);

CREATE TABLE orders (
    id uuid PRIMARY KEY,
    product_id integer NOT NULL REFERENCES products,
    user_id bigint NOT NULL,
    quantity integer NOT NULL CHECK (quantity > 0),
    unit_price_cents bigint NOT NULL,
    currency text NOT NULL,
    status text NOT NULL CHECK (status IN ('awaiting_payment', 'needs_reconciliation', 'confirmed', 'payment_failed', 'failed')),
    reason text,
    epoch bigint NOT NULL, -- epoch, version and available of the reservation
    version bigint NOT NULL,
    available integer NOT NULL,
    key_hash text,
    charge_id text,
    charge_started_at_ms bigint,
    charge_answered_at_ms bigint,
    placed_at_ms bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- A user's orders, newest first: ids are ordered by time.
CREATE INDEX orders_of_user ON orders (user_id, id DESC);
-- What a rebuild counts as held, and what the reconciler works on.
CREATE INDEX orders_unpaid ON orders (product_id, updated_at) WHERE status IN ('awaiting_payment', 'needs_reconciliation');
CREATE INDEX orders_recently_ended ON orders (product_id, updated_at) WHERE status IN ('confirmed', 'payment_failed', 'failed');

-- One batch of order.placed into rows, in one round trip. Products are locked in id order, so batches of two members
-- never wait for each other in a circle; then orders are decided one by one in version order against what is left, so the
-- database refuses the unit too many whatever Redis said. Outcomes: new, known (the row was there), stale (made by books
-- that a rebuild has replaced, and not vouched for by a held entry), no_product.
CREATE FUNCTION place_orders(
    ids uuid[], product_ids integer[], user_ids bigint[], quantities integer[], epochs bigint[], versions bigint[],
    availables integer[], placed bigint[], key_hashes text[], vouched boolean[]
) RETURNS TABLE (order_id uuid, outcome text, status text, unit_price_cents bigint, currency text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    wish record;
    counting integer;
    taken integer;
    accepted bigint[] := '{}';
    refused bigint[] := '{}';
BEGIN
    PERFORM 1 FROM products p WHERE p.id = ANY (product_ids) ORDER BY p.id FOR UPDATE;
    FOR wish IN
        SELECT * FROM (
            -- one wish an order: its copies do not compete with each other for the last unit
            SELECT DISTINCT ON (i.id) i.id, i.ord, i.product_id, i.quantity, i.epoch, i.version, p.taken, p.initial
            FROM unnest(ids, product_ids, quantities, epochs, versions, vouched) WITH ORDINALITY
                AS i (id, product_id, quantity, epoch, version, vouched, ord)
            JOIN products p ON p.id = i.product_id
            WHERE (i.epoch >= p.epoch OR i.vouched) AND NOT EXISTS (SELECT FROM orders o WHERE o.id = i.id)
            ORDER BY i.id, i.epoch, i.version
        ) wishes
        ORDER BY wishes.product_id, wishes.epoch, wishes.version, wishes.id
    LOOP
        IF wish.product_id IS DISTINCT FROM counting THEN
            counting := wish.product_id;
            taken := wish.taken;
        END IF;
        IF taken + wish.quantity <= wish.initial THEN
            taken := taken + wish.quantity;
            accepted := accepted || wish.ord;
        ELSE
            refused := refused || wish.ord;
        END IF;
    END LOOP;

    RETURN QUERY
    WITH input AS (
        SELECT * FROM unnest(ids, product_ids, user_ids, quantities, epochs, versions, availables, placed, key_hashes)
            WITH ORDINALITY AS i (id, product_id, user_id, quantity, epoch, version, available, placed, key_hash, ord)
    ), inserted AS (
        INSERT INTO orders AS o (id, product_id, user_id, quantity, unit_price_cents, currency, status, reason, epoch, version,
            available, key_hash, placed_at_ms)
        SELECT i.id, i.product_id, i.user_id, i.quantity, p.price_cents, p.currency,
            CASE WHEN i.ord = ANY (accepted) THEN 'awaiting_payment' ELSE 'failed' END,
            CASE WHEN i.ord = ANY (accepted) THEN NULL ELSE 'no stock left in the database' END,
            i.epoch, i.version, i.available, i.key_hash, i.placed
        FROM input i JOIN products p ON p.id = i.product_id
        WHERE i.ord = ANY (accepted || refused)
        ON CONFLICT (id) DO NOTHING
        RETURNING o.id, o.product_id, o.quantity, o.status, o.unit_price_cents, o.currency
    ), counted AS (
        UPDATE products p SET taken = p.taken + s.units, updated_at = now()
        FROM (SELECT n.product_id, sum(n.quantity) AS units FROM inserted n WHERE n.status = 'awaiting_payment' GROUP BY 1) s
        WHERE p.id = s.product_id
    )
    SELECT DISTINCT ON (i.id) i.id,
        CASE WHEN n.id IS NOT NULL THEN 'new' WHEN o.id IS NOT NULL THEN 'known'
             WHEN p.id IS NULL THEN 'no_product' ELSE 'stale' END,
        coalesce(n.status, o.status), coalesce(n.unit_price_cents, o.unit_price_cents), coalesce(n.currency, o.currency)
    FROM input i
    LEFT JOIN inserted n ON n.id = i.id
    LEFT JOIN orders o ON o.id = i.id -- sees the rows of before this statement
    LEFT JOIN products p ON p.id = i.product_id;
END $$;

-- One batch of definite answers (and of 'needs_reconciliation') into rows. The guard lets a late success land and nothing
-- overwrite a terminal row; what comes back is each order's row as it then stands, whoever wrote it.
CREATE FUNCTION settle_orders(
    ids uuid[], statuses text[], reasons text[], charge_ids text[], started bigint[], answered bigint[]
) RETURNS SETOF orders
LANGUAGE plpgsql AS $$
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
        WHERE o.id = i.id AND o.status IN ('awaiting_payment', 'needs_reconciliation') AND o.status <> i.status
        RETURNING o.product_id, o.quantity, o.status
    )
    UPDATE products p SET taken = p.taken - s.units, updated_at = now()
    FROM (SELECT c.product_id, sum(c.quantity) AS units FROM changed c
          WHERE c.status IN ('payment_failed', 'failed') GROUP BY 1) s
    WHERE p.id = s.product_id;
    RETURN QUERY SELECT o.* FROM orders o WHERE o.id = ANY (ids);
END $$;

-- migrate: rollback

DROP FUNCTION settle_orders;
DROP FUNCTION place_orders;
DROP TABLE orders;
DROP TABLE products;
DROP TABLE users;
