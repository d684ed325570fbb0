-- Rate tables (rate-tables.md). A frozen state in entity_version names the set of entries that it has; sets are written
-- once, and versions that differ in other members share one.

CREATE TABLE rate_table (
    id                           uuid PRIMARY KEY,
    organization_id              uuid NOT NULL,
    workspace_id                 uuid NOT NULL REFERENCES workspace,
    name                         text NOT NULL,
    slug                         text NOT NULL,
    description                  text,
    table_type                   text NOT NULL CHECK (table_type IN ('lookup', 'bracket')),
    on_missing_key               text NOT NULL CHECK (on_missing_key IN ('error', 'zero', 'default_value')),
    default_value                numeric,
    requires_continuous_coverage boolean NOT NULL,
    entry_set_id                 uuid, -- null before the first version
    -- Follows from its versions until it is archived; null only in the transaction that makes it.
    status                       text CHECK (status IN ('draft', 'active', 'archived')),
    version                      integer NOT NULL,
    head_version_id              uuid,
    created_at                   timestamptz NOT NULL,
    updated_at                   timestamptz NOT NULL,
    deleted_at                   timestamptz,
    UNIQUE (workspace_id, slug),
    CHECK ((on_missing_key = 'default_value') = (default_value IS NOT NULL))
);
CREATE INDEX rate_table_list ON rate_table (workspace_id, created_at DESC, id DESC);

CREATE TABLE rate_table_entry (
    id            uuid PRIMARY KEY,
    workspace_id  uuid NOT NULL,
    rate_table_id uuid NOT NULL REFERENCES rate_table,
    entry_set_id  uuid NOT NULL,
    position      integer NOT NULL, -- order of keys or bounds
    key           text,
    lower_bound   numeric,
    upper_bound   numeric,
    value         numeric NOT NULL,
    UNIQUE (entry_set_id, position)
);
CREATE INDEX rate_table_entry_table ON rate_table_entry (rate_table_id);
CREATE INDEX rate_table_entry_workspace ON rate_table_entry (workspace_id, entry_set_id);
