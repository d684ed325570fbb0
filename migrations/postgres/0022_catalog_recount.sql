-- Changes of the catalog that may apply to usage that was counted without them (rule B6). Written with the change. A call to
-- count windows anew goes to every partition; until all of them have passed it, no invoice is finalized for a window that it
-- touches.
CREATE TABLE catalog_recount (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id uuid NOT NULL,
    -- Usage from this instant on is judged by another version now; null: since ever.
    from_at      timestamptz,
    -- Of these products; null: of every product.
    product_ids  uuid[],
    -- Where the calls stand: the log, and the offset in each of its partitions. Null: not called yet.
    log_id       uuid,
    offsets      bigint[],
    -- All partitions have passed the calls. Kept for a day: a window that was sealed meanwhile and is opened again is counted
    -- anew, too.
    done_at      timestamptz
);
CREATE INDEX catalog_recount_workspace ON catalog_recount (workspace_id);
