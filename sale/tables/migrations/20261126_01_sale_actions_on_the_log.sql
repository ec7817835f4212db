-- which of the operators' actions are on the log (topic sale-actions)
-- depends: 20261122_02_operators

-- migrate: apply

ALTER TABLE sale_actions ADD COLUMN published_at timestamptz; -- after the broker's acknowledgement
CREATE INDEX sale_actions_unpublished ON sale_actions (id) WHERE published_at IS NULL;

-- migrate: rollback

ALTER TABLE sale_actions DROP COLUMN published_at;
