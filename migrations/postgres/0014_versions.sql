-- Versions beside the one in effect: drafts and scheduled ones (scheduled-changes.md).

ALTER TABLE entity_version
    DROP CONSTRAINT entity_version_entity_type_check,
    ADD CONSTRAINT entity_version_entity_type_check CHECK (entity_type IN
        ('product', 'plan', 'price', 'meter', 'binding', 'cost', 'price_formula', 'rate_table', 'promotion', 'tax_rule')),
    -- The start that the request of a draft named: the default of its publication. A draft has no effective_from.
    ADD planned_from timestamptz,
    -- The end that a request named; effective_to is the start of the successor when that comes first.
    ADD planned_to   timestamptz;
UPDATE entity_version SET planned_to = effective_to WHERE archived_reason IS DISTINCT FROM 'superseded';
-- What versions of prices freeze from now on; until now a price had one version only.
UPDATE entity_version v
SET snapshot = jsonb_build_object('formula_id', p.formula_id, 'display_name', p.display_name, 'metadata', p.metadata,
                                  'requires_continuous_coverage', p.requires_continuous_coverage) || v.snapshot
FROM price p WHERE v.entity_type = 'price' AND v.entity_id = p.id;
CREATE UNIQUE INDEX entity_version_draft ON entity_version (entity_id) WHERE status = 'draft';

-- Nothing runs when a version starts or ends: what has come by an instant is derived on every read.
CREATE FUNCTION present_status(stored text, starts timestamptz, ends timestamptz, at timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN stored NOT IN ('scheduled', 'active') THEN stored
                WHEN ends <= at THEN 'archived'
                WHEN starts > at THEN 'scheduled'
                ELSE 'active' END
$$;

CREATE FUNCTION versions_at(at timestamptz) RETURNS TABLE (
    id uuid, workspace_id uuid, entity_type text, entity_id uuid, version integer, status text, effective_from timestamptz,
    effective_to timestamptz, planned_from timestamptz, planned_to timestamptz, published_at timestamptz, published_by uuid,
    created_at timestamptz, created_by uuid, archived_reason text, cancelled_at timestamptz, warnings jsonb, snapshot jsonb)
LANGUAGE sql STABLE AS $$
    SELECT v.id, v.workspace_id, v.entity_type, v.entity_id, v.version,
           present_status(v.status, v.effective_from, v.effective_to, at), v.effective_from, v.effective_to, v.planned_from,
           v.planned_to, v.published_at, v.published_by, v.created_at, v.created_by,
           CASE WHEN v.status = 'archived' THEN v.archived_reason
                WHEN present_status(v.status, v.effective_from, v.effective_to, at) = 'archived' THEN
                    CASE WHEN v.effective_to = v.planned_to THEN coalesce(v.archived_reason, 'ended') ELSE 'superseded' END
           END,
           v.cancelled_at, v.warnings, v.snapshot
    FROM entity_version v
$$;

-- The state of an entity at an instant, or that of a chosen version, to be laid over the entity's row: the members of the
-- version in effect or of the last one that was; before the first one those of the next one; without any those of the draft.
CREATE FUNCTION entity_state(entity uuid, at timestamptz DEFAULT statement_timestamp(), chosen uuid DEFAULT NULL) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT snapshot || CASE WHEN status = 'draft' AND chosen IS NULL
        THEN jsonb_build_object('version', 0, 'head_version_id', NULL, 'effective_from', NULL, 'effective_to', NULL,
                                'status', 'draft')
        ELSE jsonb_build_object('version', version, 'head_version_id', id,
                                'effective_from', effective_from, 'effective_to', effective_to,
                                'status', present_status(status, effective_from, effective_to, at))
        END
    FROM entity_version
    WHERE entity_id = entity AND CASE WHEN chosen IS NULL THEN cancelled_at IS NULL ELSE id = chosen END
    ORDER BY status = 'draft', coalesce(effective_from > at, false),
             abs(extract(epoch FROM effective_from - at)) NULLS LAST, version DESC
    LIMIT 1
$$;

-- A binding has one PRIMARY place per product, metric and instant, a matter of the spans of versions: checked under the lock
-- of the product. A scheduled binding is a live one whose version starts later.
DROP INDEX product_meter_binding_primary;
UPDATE product_meter_binding SET status = 'active' WHERE status = 'scheduled';
