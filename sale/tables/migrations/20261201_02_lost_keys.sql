-- orders whose Idempotency-Key was lost with the books
-- depends: 20261201_06_sale_keys

-- migrate: apply

-- The order was accepted under its key, the books lost both, and the key is free or another order's.
ALTER TABLE orders ADD COLUMN key_lost boolean NOT NULL DEFAULT false;
UPDATE orders SET key_lost = true
WHERE status = 'failed' AND key_hash IS NOT NULL
  AND (reason LIKE 'its key was used again %' OR reason LIKE 'its reservation was lost with the books, and then: %');

-- migrate: rollback

ALTER TABLE orders DROP COLUMN key_lost;
