-- Usage that is reserved on a wallet of another currency than its price (reserve.md 5, Amount held).

ALTER TABLE usage_reservation
    -- The rate that the hold was converted at, with its rounding: the capture is converted alike. NULL: nothing was converted, and net
    -- and tax are in the wallet's currency; else they are in the rate's source currency.
    ADD COLUMN exchange jsonb,
    -- What the capture took, in the wallet's currency, where that is not captured_net + captured_tax.
    ADD COLUMN captured_charge numeric;
