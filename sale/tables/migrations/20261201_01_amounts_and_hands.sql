-- an order's total is at most 2^53 cents, and an order may be in an operator's hands
-- depends: 20261201_02_lost_keys 20261201_07_resolved_letters

-- migrate: apply

-- Readers of JSON and Lua hold no more exactly; refused earlier, this is the last word before anything is charged.
ALTER TABLE products ADD CONSTRAINT price_is_an_amount CHECK (price_cents <= 9007199254740992);
ALTER TABLE orders ADD CONSTRAINT total_is_an_amount CHECK (unit_price_cents::numeric * quantity <= 9007199254740992);
ALTER TABLE orders ADD COLUMN by_hand_since timestamptz; -- when an operator took it out of the reconciler's hands

-- migrate: rollback

ALTER TABLE orders DROP COLUMN by_hand_since;
ALTER TABLE orders DROP CONSTRAINT total_is_an_amount;
ALTER TABLE products DROP CONSTRAINT price_is_an_amount;
