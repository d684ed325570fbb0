-- Invoices that ask for a top-up (wallets.md, mode INVOICE): the wallet that is filled when the invoice is paid.
ALTER TABLE invoice ADD COLUMN topup_wallet_id uuid REFERENCES wallet;
