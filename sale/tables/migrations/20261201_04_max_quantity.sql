-- how many units one order may be of
-- depends: 20261126_03_plans_by_key

-- migrate: apply

ALTER TABLE products ADD COLUMN max_quantity integer NOT NULL DEFAULT 10 CHECK (max_quantity > 0);

-- migrate: rollback

ALTER TABLE products DROP COLUMN max_quantity;
