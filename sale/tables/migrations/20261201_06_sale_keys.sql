-- what each Idempotency-Key of an operator was used for, so that the same key with another wish is refused
-- depends: 20261126_03_plans_by_key

-- migrate: apply

-- A row for each key whose wish was granted, also where it changed nothing and left no line in the audit trail.
CREATE TABLE sale_keys (
    who text NOT NULL,
    key_hash text NOT NULL,
    product_id integer NOT NULL REFERENCES products ON DELETE CASCADE,
    action text NOT NULL,
    units integer,
    why text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (who, key_hash)
);
INSERT INTO sale_keys (who, key_hash, product_id, action, units, why, at)
SELECT who, key_hash, product_id, action, units, why, at FROM sale_actions WHERE key_hash IS NOT NULL ORDER BY id
ON CONFLICT DO NOTHING;
ALTER TABLE sale_actions DROP COLUMN key_hash;

-- migrate: rollback

ALTER TABLE sale_actions ADD COLUMN key_hash text, ADD UNIQUE (product_id, who, key_hash);
DROP TABLE sale_keys;
