-- Costs of goods, for margins (costs.md). The frozen states are in entity_version.

CREATE TABLE cost (
    id                           uuid PRIMARY KEY,
    organization_id              uuid NOT NULL,
    workspace_id                 uuid NOT NULL REFERENCES workspace,
    product_id                   uuid REFERENCES product, -- null: of the organization
    key                          text NOT NULL,
    description                  text,
    scope                        text NOT NULL CHECK (scope IN ('PRODUCT', 'ORG')),
    expression                   jsonb NOT NULL,
    status                       text NOT NULL CHECK (status IN ('draft', 'active', 'archived')),
    version                      integer NOT NULL,
    head_version_id              uuid,
    requires_continuous_coverage boolean NOT NULL DEFAULT false,
    created_at                   timestamptz NOT NULL,
    updated_at                   timestamptz NOT NULL,
    archived_at                  timestamptz,
    CHECK ((scope = 'PRODUCT') = (product_id IS NOT NULL)),
    CONSTRAINT cost_key UNIQUE NULLS NOT DISTINCT (workspace_id, product_id, key)
);
CREATE INDEX cost_list ON cost (workspace_id, created_at DESC, id DESC);
CREATE INDEX cost_product ON cost (product_id, created_at DESC, id DESC) WHERE product_id IS NOT NULL;
