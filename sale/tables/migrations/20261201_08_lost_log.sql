-- products whose records the log has lost, until an opening says so
-- depends: 20261201_01_amounts_and_hands 20261201_03_incidents

-- migrate: apply

-- Noted before the books are closed for it: whichever relay makes them anew says so in their opening.
ALTER TABLE products ADD COLUMN log_lost boolean NOT NULL DEFAULT false;

-- migrate: rollback

ALTER TABLE products DROP COLUMN log_lost;
