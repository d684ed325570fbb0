-- What wallets pay of invoices stands in the ledger of payments, so that what is paid of an invoice is what came for it less what
-- went back.

ALTER TABLE payment_transaction
    ADD CONSTRAINT payment_transaction_wallet_payment
        CHECK (kind <> 'WALLET_PAYMENT' OR (wallet_id IS NOT NULL AND invoice_id IS NOT NULL)),
    -- Of a movement that takes back a payment which was more than its invoice was owed: what left the wallet instead of the invoice.
    DROP CONSTRAINT payment_transaction_check12,
    ADD CONSTRAINT payment_transaction_excess
        CHECK (excess_amount = 0 OR (kind IN ('CHARGE', 'MANUAL_PAYMENT', 'REFUND', 'CHARGEBACK') AND wallet_id IS NOT NULL));

-- Movements so far have taken from the invoice first.
UPDATE payment_transaction back SET excess_amount = taken.beyond, wallet_id = taken.wallet_id
FROM (SELECT id, wallet_id, greatest(so_far - kept, 0) - greatest(so_far - amount - kept, 0) AS beyond
      FROM (SELECT b.id, b.amount, p.wallet_id, p.amount - p.excess_amount AS kept,
                sum(b.amount) OVER (PARTITION BY p.id ORDER BY b.created_at, b.id) AS so_far
            FROM payment_transaction b JOIN payment_transaction p ON p.id = b.parent_transaction_id
            WHERE b.status = 'SUCCEEDED' AND p.excess_amount > 0) AS movement) AS taken
WHERE back.id = taken.id AND taken.beyond > 0;

-- What is paid of an invoice beyond its movements, wallets have paid. The wallet is the one that was drawn, else one that captures
-- were taken from, else the customer's in that currency.
INSERT INTO payment_transaction (id, organization_id, workspace_id, customer_id, invoice_id, subscription_id, wallet_id, direction,
    kind, status, amount, currency, processed_at, created_at, updated_at)
SELECT gen_random_uuid(), i.organization_id, i.workspace_id, i.customer_id, i.id, i.subscription_id,
    coalesce(drawn.wallet_id, captured.wallet_id, own.id), 'INBOUND', 'WALLET_PAYMENT', 'SUCCEEDED', i.amount_paid - moved.amount,
    i.currency, i.finalized_at, i.finalized_at, i.finalized_at
FROM invoice i
    LEFT JOIN (SELECT DISTINCT ON (reference_id) reference_id, wallet_id FROM wallet_transaction
               WHERE source = 'INVOICE' AND reference_type = 'invoice' AND amount < 0 ORDER BY reference_id, id) AS drawn
        ON drawn.reference_id = i.id
    LEFT JOIN (SELECT DISTINCT ON (subscription_id, settled_at) subscription_id, settled_at, wallet_id FROM usage_reservation
               WHERE settled_at IS NOT NULL ORDER BY subscription_id, settled_at, hold_id) AS captured
        ON captured.subscription_id = i.subscription_id AND captured.settled_at = i.finalized_at
    LEFT JOIN wallet own ON own.customer_id = i.customer_id AND own.currency = i.currency
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(CASE direction WHEN 'INBOUND' THEN 1 ELSE -1 END * (amount - excess_amount)), 0) AS amount
        FROM payment_transaction t
        WHERE t.invoice_id = i.id AND t.status IN ('SUCCEEDED', 'PARTIALLY_REFUNDED', 'REFUNDED', 'DISPUTED')) AS moved
WHERE i.amount_paid > moved.amount AND i.finalized_at IS NOT NULL
    AND coalesce(drawn.wallet_id, captured.wallet_id, own.id) IS NOT NULL;
