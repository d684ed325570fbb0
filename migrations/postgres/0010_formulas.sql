-- Price formulas (price-formulas.md). The frozen states are in entity_version.

CREATE TABLE price_formula (
    id              uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    workspace_id    uuid NOT NULL REFERENCES workspace,
    name            text NOT NULL,
    expression      text NOT NULL, -- of the version in effect, as the variables
    variables       jsonb NOT NULL,
    is_system       boolean NOT NULL,
    -- Follows from its versions; null only in the transaction that makes it.
    status          text CHECK (status IN ('draft', 'active')),
    version         integer NOT NULL,
    head_version_id uuid,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL
);
CREATE INDEX price_formula_list ON price_formula (workspace_id, created_at DESC, id DESC);

-- A formula goes only when no price refers to it.
ALTER TABLE price ADD CONSTRAINT price_formula_id_fkey FOREIGN KEY (formula_id) REFERENCES price_formula;
CREATE INDEX price_formula_id ON price (formula_id) WHERE formula_id IS NOT NULL;

ALTER TABLE entity_version
    DROP CONSTRAINT entity_version_entity_type_check,
    ADD CONSTRAINT entity_version_entity_type_check CHECK (entity_type IN
        ('product', 'plan', 'price', 'meter', 'binding', 'price_formula', 'rate_table'));
