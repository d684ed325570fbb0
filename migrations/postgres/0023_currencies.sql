-- The currencies that a workspace uses (currencies.md).

CREATE TABLE workspace_currency (
    workspace_id    uuid NOT NULL REFERENCES workspace,
    currency_code   text NOT NULL,
    billing_enabled boolean NOT NULL,
    catalog_enabled boolean NOT NULL,
    is_default      boolean NOT NULL DEFAULT false,
    rounding_mode   text NOT NULL DEFAULT 'HALF_UP' CHECK (rounding_mode IN ('HALF_UP', 'HALF_EVEN', 'UP', 'DOWN')),
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, currency_code),
    CHECK (NOT is_default OR (billing_enabled AND catalog_enabled))
);
CREATE UNIQUE INDEX workspace_currency_default ON workspace_currency (workspace_id) WHERE is_default;

-- Every workspace has its default from the first, whoever makes it: the organization's.
CREATE FUNCTION workspace_currency_of_new() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO workspace_currency (workspace_id, currency_code, billing_enabled, catalog_enabled, is_default, created_at, updated_at)
    SELECT NEW.id, default_currency, true, true, true, NEW.created_at, NEW.created_at
    FROM organization WHERE id = NEW.organization_id;
    RETURN NULL;
END $$;
CREATE TRIGGER workspace_currency_of_new AFTER INSERT ON workspace
    FOR EACH ROW EXECUTE FUNCTION workspace_currency_of_new();

-- Workspaces that are there already go on with what they use.
INSERT INTO workspace_currency (workspace_id, currency_code, billing_enabled, catalog_enabled, is_default, created_at, updated_at)
SELECT workspace.id, used.code, true, true, used.code = organization.default_currency, now(), now()
FROM workspace JOIN organization ON organization.id = workspace.organization_id CROSS JOIN LATERAL (
    SELECT organization.default_currency AS code
    UNION SELECT currency FROM price WHERE workspace_id = workspace.id
    UNION SELECT currency FROM subscription WHERE workspace_id = workspace.id
    UNION SELECT currency FROM invoice WHERE workspace_id = workspace.id
    UNION SELECT currency FROM wallet WHERE workspace_id = workspace.id
    UNION SELECT preferred_currency FROM customer WHERE workspace_id = workspace.id AND preferred_currency IS NOT NULL) AS used;
