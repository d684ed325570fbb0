-- Closed periods of the books: nothing is booked in them any more (ledger/src/closing.rs).

CREATE TABLE ledger_closing (
    id            uuid PRIMARY KEY,
    workspace_id  uuid NOT NULL REFERENCES workspace,
    closed_before timestamptz NOT NULL, -- exclusive: what is booked at this instant is in the open period
    note          text,
    closed_at     timestamptz NOT NULL,
    reopened_at   timestamptz,
    reopened_note text
);
CREATE INDEX ledger_closing_effective ON ledger_closing (workspace_id, closed_before) WHERE reopened_at IS NULL;

-- The lock is shared among bookings and held until they are committed: a closing waits for what is on its way, and what
-- comes after it reads it, since each statement of a volatile function has a snapshot of its own.
CREATE FUNCTION refuse_closed_period() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    end_of_closed timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(w.workspace_id::text, 28))
    FROM (SELECT DISTINCT workspace_id FROM inserted ORDER BY workspace_id) AS w;
    SELECT max(c.closed_before) INTO end_of_closed
    FROM inserted t JOIN ledger_closing c ON c.workspace_id = t.workspace_id
    WHERE c.reopened_at IS NULL AND t.booked_at < c.closed_before;
    IF end_of_closed IS NOT NULL THEN
        RAISE EXCEPTION 'the books are closed for everything before %',
            to_char(end_of_closed AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'ledger_period_closed';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ledger_transfer_period AFTER INSERT ON ledger_transfer
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION refuse_closed_period();
