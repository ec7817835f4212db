-- what the reconciler asks for every second, found without passing over every order that awaits its payment
-- depends: 20261126_01_sale_actions_on_the_log

-- migrate: apply

CREATE INDEX orders_unknown ON orders (updated_at) WHERE status = 'needs_reconciliation';

-- migrate: rollback

DROP INDEX orders_unknown;
