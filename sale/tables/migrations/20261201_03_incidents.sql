-- findings of the audit that an operator has acknowledged, with a reason
-- depends: 20261201_02_parked_orders

-- migrate: apply

ALTER TABLE sale_actions
    ADD COLUMN findings text[], -- the audit's words, of an acknowledgement
    DROP CONSTRAINT sale_actions_action_check,
    ADD CONSTRAINT sale_actions_action_check CHECK (action IN ('pause', 'resume', 'close', 'restock', 'acknowledge')),
    ADD CONSTRAINT sale_actions_findings_check CHECK ((action = 'acknowledge') = (findings IS NOT NULL));

-- migrate: rollback

DELETE FROM sale_actions WHERE action = 'acknowledge';
ALTER TABLE sale_actions
    DROP COLUMN findings,
    DROP CONSTRAINT sale_actions_action_check,
    ADD CONSTRAINT sale_actions_action_check CHECK (action IN ('pause', 'resume', 'close', 'restock'));
