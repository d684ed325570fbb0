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
CREATE UNIQUE INDEX entity_version_draft ON entity_version (entity_id) WHERE status = 'draft';

-- Nothing runs when a version starts or ends: what has come since the last write is derived on every read.
CREATE FUNCTION present_status(stored text, starts timestamptz, ends timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN stored NOT IN ('scheduled', 'active') THEN stored
                WHEN ends <= clock_timestamp() THEN 'archived'
                WHEN starts > clock_timestamp() THEN 'scheduled'
                ELSE 'active' END
$$;

CREATE VIEW version_now AS
SELECT id, workspace_id, entity_type, entity_id, version, present_status(status, effective_from, effective_to) AS status,
       effective_from, effective_to, planned_from, planned_to, published_at, published_by, created_at, created_by, cancelled_at,
       warnings, snapshot,
       CASE WHEN status = 'archived' THEN archived_reason
            WHEN present_status(status, effective_from, effective_to) = 'archived' THEN
                CASE WHEN effective_to = planned_to THEN coalesce(archived_reason, 'ended') ELSE 'superseded' END
            END AS archived_reason
FROM entity_version;

-- The state of an entity at an instant, or that of a chosen version, to be laid over the entity's row: the members of the
-- version in effect or of the last one that was; before the first one those of the next one; without any those of the draft.
CREATE FUNCTION entity_state(entity uuid, at timestamptz DEFAULT clock_timestamp(), chosen uuid DEFAULT NULL) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT snapshot || CASE WHEN status = 'draft' AND chosen IS NULL
        THEN jsonb_build_object('version', 0, 'head_version_id', NULL, 'effective_from', NULL, 'effective_to', NULL)
        ELSE jsonb_build_object('version', version, 'head_version_id', id,
                                'effective_from', effective_from, 'effective_to', effective_to)
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
