-- dead letters that an operator has closed with a reason, and what tells that a redriven one came back
-- depends: 20261201_04_max_quantity 20261201_06_sale_keys

-- migrate: apply

CREATE TABLE resolved_letters (
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    appended_at_ms bigint NOT NULL, -- as in redriven_letters: offsets begin anew when the log is wiped
    who text NOT NULL,
    why text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (partition, "offset", appended_at_ms)
);

-- Where the letter's partition ended before its record was sent again: the same record from there on has come back.
ALTER TABLE redriven_letters ADD COLUMN ended_at_offset bigint;

-- migrate: rollback

ALTER TABLE redriven_letters DROP COLUMN ended_at_offset;
DROP TABLE resolved_letters;
