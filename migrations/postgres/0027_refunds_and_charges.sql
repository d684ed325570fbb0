-- What credit notes are used for, and finalized invoices that are to be charged.

CREATE TABLE credit_note_application (
    id             uuid PRIMARY KEY,
    workspace_id   uuid NOT NULL REFERENCES workspace,
    credit_note_id uuid NOT NULL REFERENCES credit_note,
    target         text NOT NULL CHECK (target IN ('INVOICE', 'WALLET', 'REFUND')),
    invoice_id     uuid REFERENCES invoice,
    wallet_id      uuid REFERENCES wallet,
    transaction_id uuid REFERENCES payment_transaction,
    amount         numeric NOT NULL CHECK (amount > 0),
    currency       text NOT NULL,
    applied_at     timestamptz NOT NULL,
    applied_by     uuid
);
CREATE INDEX credit_note_application_list ON credit_note_application (credit_note_id, applied_at DESC, id DESC);

-- Invoices whose customer's payment method is to be charged. Written in the transaction that finalizes the invoice, or that
-- learns of a failure that may pass.
CREATE TABLE invoice_charge (
    invoice_id   uuid PRIMARY KEY REFERENCES invoice,
    workspace_id uuid NOT NULL,
    -- In real time: providers know no test clocks.
    not_before   timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE INDEX invoice_charge_due ON invoice_charge (not_before);
