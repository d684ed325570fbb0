-- Allowances of price keys (pool_scope ITEM): what they leave, and what is refused when they are used up (allowances.md A9, 5.1).

ALTER TABLE allowance_lot ADD COLUMN price_key text NOT NULL DEFAULT ''; -- '': of the allowance that all share
ALTER TABLE allowance_lot DROP CONSTRAINT allowance_lot_pkey;
ALTER TABLE allowance_lot ADD PRIMARY KEY (subscription_id, available_from, product_id, metric_key, price_key, source_start);

ALTER TABLE usage_block ADD COLUMN price_key text NOT NULL DEFAULT '',         -- usage of this key alone; '': of all
    ADD COLUMN except_keys text[] NOT NULL DEFAULT '{}';                       -- but these, which have allowances of their own
ALTER TABLE usage_block DROP CONSTRAINT usage_block_pkey;
ALTER TABLE usage_block ADD PRIMARY KEY (subscription_id, window_start, product_id, metric_key, price_key, starts_at, code);
