//! What FORMULA meters are made of (meters.md 5, MeterFormula): the meters that read events for them, at each instant.
//!
//! A FORMULA meter names meters by key, and these may be FORMULA meters again. [`Meters::components`] follows the names
//! through the versions that hold at the same time, so a cycle is found exactly where it would be: two versions that name
//! each other but never hold together are none. Every write of a meter checks all FORMULA meters of the workspace, under one
//! lock, because an edit of one meter can break another one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::TimeDelta;
use domain::{Error, Instant, MeterFunction, MeterId, Result, Scope, VersionId, WorkspaceId};
use rating::{CompiledMeter, Component, FilterTree, MeterDefinition, Step, Threshold};
use serde::Deserialize;
use sqlx::{FromRow, PgConnection};
use store::{StoreError, Tx};

use super::{Meter, MeterFormula, Window};
use crate::compiled::SINCE_EVER;

/// FORMULA meters on one path of names.
const DEPTH_MAX: usize = 5;
/// Meters that read events for one FORMULA meter.
pub(crate) const COMPONENTS_MAX: usize = 50;

/// The members of a meter's snapshot that counting needs.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MeterSnapshot {
    pub function: MeterFunction,
    value_field: Option<String>,
    unique_by_field: Option<String>,
    #[serde(default)]
    negative_allowed: bool,
    late_event_policy: domain::LateEventPolicy,
    window: Window,
    dedup_key_path: Option<String>,
    unit_currency_field: Option<String>,
    pub event_schema: Option<serde_json::Value>,
    filter: Option<FilterTree>,
    formula: Option<MeterFormula>,
    #[serde(default)]
    thresholds: Vec<Threshold>,
}

/// A version of a meter, and the span in which it holds.
#[derive(Clone, Debug)]
pub(crate) struct MeterVersion {
    pub id: VersionId,
    pub from: Instant,
    pub to: Option<Instant>,
    /// Drafts and cancelled versions are known, and never in effect.
    pub is_on_timeline: bool,
    pub snapshot: MeterSnapshot,
}

/// A meter with its versions, by start.
#[derive(Clone, Debug)]
pub(crate) struct MeterTimeline {
    pub id: MeterId,
    pub key: String,
    pub metric_key: String,
    pub versions: Vec<MeterVersion>,
}

impl MeterTimeline {
    /// Published versions that combine other meters.
    fn formulas(&self) -> impl Iterator<Item = &MeterVersion> {
        let combines = |version: &&MeterVersion| version.snapshot.function == MeterFunction::Formula;
        self.versions.iter().filter(|version| version.is_on_timeline).filter(combines)
    }

    /// A version in the form in which it is compiled.
    ///
    /// # Errors
    /// `Validation` for a window that breaks a rule.
    pub(crate) fn definition(&self, version: &MeterVersion) -> Result<MeterDefinition> {
        let snapshot = version.snapshot.clone();
        Ok(MeterDefinition {
            meter_id: self.id,
            version_id: version.id,
            effective_from: version.from,
            key: self.key.clone(),
            metric_key: self.metric_key.clone(),
            function: snapshot.function,
            value_field: snapshot.value_field,
            unique_by_field: snapshot.unique_by_field,
            filter: snapshot.filter,
            negative_allowed: snapshot.negative_allowed,
            late_event_policy: snapshot.late_event_policy,
            thresholds: snapshot.thresholds,
            window: snapshot.window.span().map_err(Error::Validation)?,
            dedup_key_path: snapshot.dedup_key_path,
            unit_currency_field: snapshot.unit_currency_field,
        })
    }
}

/// Compiles the formula of a version of a FORMULA meter.
fn compile(version: &MeterVersion) -> Result<rating::MeterFormula> {
    let MeterSnapshot { formula, negative_allowed, .. } = &version.snapshot;
    let formula = formula.as_ref().ok_or_else(|| Error::invariant("a FORMULA meter has a formula"))?;
    formula.compile(version.id, *negative_allowed)
}

/// The meters of a workspace by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meters(HashMap<String, MeterTimeline>);

#[derive(FromRow)]
struct Row {
    meter_id: MeterId,
    key: String,
    metric_key: String,
    id: VersionId,
    effective_from: Option<Instant>,
    effective_to: Option<Instant>,
    is_on_timeline: bool,
    snapshot: serde_json::Value,
}

impl Meters {
    /// Reads every version.
    ///
    /// # Errors
    /// As every statement; `Internal` for a stored version that cannot be read.
    pub(crate) async fn load(conn: &mut PgConnection, workspace_id: WorkspaceId) -> Result<Self> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT m.id AS meter_id, m.key, m.metric_key, v.id, v.effective_from, v.effective_to,
                    v.status <> 'draft' AND v.cancelled_at IS NULL AS is_on_timeline, v.snapshot
             FROM meter m JOIN entity_version v ON v.entity_id = m.id
             WHERE v.workspace_id = $1 AND v.entity_type = 'meter'
             ORDER BY m.id, v.effective_from NULLS FIRST, v.version",
        )
        .bind(workspace_id)
        .fetch_all(conn)
        .await
        .context("reading meter versions")?;
        let mut meters = Self::default();
        for Row { meter_id, key, metric_key, id, effective_from, effective_to, is_on_timeline, snapshot } in rows {
            let snapshot = MeterSnapshot::deserialize(&snapshot)
                .map_err(|error| Error::internal(format!("reading meter version {id}"), error))?;
            let from = effective_from.unwrap_or(SINCE_EVER);
            let version = MeterVersion { id, from, to: effective_to, is_on_timeline, snapshot };
            let new = || MeterTimeline { id: meter_id, key: key.clone(), metric_key, versions: Vec::new() };
            meters.0.entry(key.clone()).or_insert_with(new).versions.push(version);
        }
        Ok(meters)
    }

    /// A meter by its key.
    pub(crate) fn get(&self, key: &str) -> Option<&MeterTimeline> {
        self.0.get(key)
    }

    /// The versions of meters that read events for a version of a FORMULA meter, each with the span in which it does.
    ///
    /// # Errors
    /// `Rule` for a cycle, too many levels or meters, and a meter that is not there.
    pub(crate) fn components<'m>(
        &'m self,
        meter: &'m MeterTimeline,
        version: &'m MeterVersion,
    ) -> Result<Vec<Leaf<'m>>> {
        let mut walk = Walk::new(self, false);
        walk.descend(meter, version, (version.from, version.to), &[])?;
        Ok(walk.leaves)
    }

    /// Those that ever may have: of versions that do not hold together now, and of withdrawn ones. States that were counted when
    /// the timelines were others name them until their windows are counted anew (rule B6).
    pub(crate) fn ever<'m>(&'m self, meter: &'m MeterTimeline, version: &'m MeterVersion) -> Vec<Leaf<'m>> {
        let mut walk = Walk::new(self, true);
        let _ = walk.descend(meter, version, (version.from, version.to), &[]); // what was found is the answer
        walk.leaves
    }

    /// Every FORMULA meter can be evaluated at each instant.
    fn check(&self) -> Result<()> {
        for meter in self.0.values() {
            for version in meter.formulas() {
                let has_parts = version.snapshot.window.span().is_ok_and(rating::Span::has_parts);
                check_leaves(&meter.key, &self.components(meter, version)?, has_parts)?;
            }
        }
        Ok(())
    }
}

/// What the meters of one formula must have in common.
fn check_leaves(key: &str, leaves: &[Leaf<'_>], has_parts: bool) -> Result<()> {
    let of_money = leaves.iter().filter(|leaf| leaf.version.snapshot.unit_currency_field.is_some()).count();
    if of_money != 0 && of_money != leaves.len() {
        let detail = format!("the FORMULA meter {key} mixes meters with and without unit_currency_field");
        return Err(Error::business_rule(detail));
    }
    let held = leaves.iter().find(|leaf| leaf.version.snapshot.function == MeterFunction::TimeWeighted);
    match held {
        Some(leaf) if has_parts => Err(Error::business_rule(format!(
            "the FORMULA meter {key} names the TIME_WEIGHTED meter {}, which is not cut into sub-windows or steps",
            leaf.meter.key
        ))),
        _ => Ok(()),
    }
}

/// A meter that reads events for a FORMULA meter.
#[derive(Clone, Debug)]
pub(crate) struct Leaf<'m> {
    path: Vec<Step>,
    meter: &'m MeterTimeline,
    pub version: &'m MeterVersion,
    /// Start of the span in which it does.
    pub from: Instant,
    /// Its end, exclusive.
    pub to: Option<Instant>,
}

impl Leaf<'_> {
    /// Its part in a binding of the FORMULA meter, and that meter as this component reads events.
    ///
    /// # Errors
    /// As [`CompiledMeter::compile`].
    pub(crate) fn compile(
        &self,
        formula_meter: &MeterDefinition,
        binding_version: VersionId,
    ) -> Result<(CompiledMeter, Component)> {
        let own = self.meter.definition(self.version)?;
        let component = Component::new(self.path.clone(), binding_version, own.meter_id, own.metric_key.clone());
        let meter = CompiledMeter::compile(MeterDefinition {
            version_id: component.version_of(own.version_id),
            effective_from: self.from,
            function: own.function,
            value_field: own.value_field,
            unique_by_field: own.unique_by_field,
            filter: own.filter,
            negative_allowed: own.negative_allowed,
            dedup_key_path: own.dedup_key_path,
            unit_currency_field: own.unit_currency_field,
            ..formula_meter.clone()
        })?;
        Ok((meter, component))
    }
}

type Span = (Instant, Option<Instant>);

/// The time that two spans share.
fn overlap(a: Span, b: Span) -> Option<Span> {
    let (from, to) = (a.0.max(b.0), [a.1, b.1].into_iter().flatten().min());
    to.is_none_or(|to| from < to).then_some((from, to))
}

/// On the way from a FORMULA meter down.
struct Walk<'m> {
    meters: &'m Meters,
    /// Whether versions need not hold at the same time.
    ever: bool,
    /// FORMULA meters from the first one to where it is.
    keys: Vec<&'m str>,
    /// Paths of variables to the meters that read events.
    names: HashSet<Vec<usize>>,
    leaves: Vec<Leaf<'m>>,
}

impl<'m> Walk<'m> {
    fn new(meters: &'m Meters, ever: bool) -> Self {
        Self { meters, ever, keys: Vec::new(), names: HashSet::new(), leaves: Vec::new() }
    }

    fn descend(
        &mut self,
        meter: &'m MeterTimeline,
        version: &'m MeterVersion,
        span: Span,
        path: &[Step],
    ) -> Result<()> {
        let is_cycle = self.keys.contains(&meter.key.as_str());
        self.keys.push(&meter.key);
        if is_cycle {
            return Err(Error::business_rule(format!("the formulas go in a circle: {}", self.keys.join(" > "))));
        }
        if self.keys.len() > DEPTH_MAX {
            let detail = format!("more than {DEPTH_MAX} FORMULA meters name each other: {}", self.keys.join(" > "));
            return Err(Error::business_rule(detail));
        }
        let formula = Arc::new(compile(version)?);
        let variables = version.snapshot.formula.iter().flat_map(|formula| &formula.variables);
        for (variable, named) in variables.enumerate() {
            let below = self.meters.get(&named.meter_key);
            let below =
                below.ok_or_else(|| Error::business_rule(format!("the meter {} is not published", named.meter_key)))?;
            let path: Vec<Step> = path.iter().cloned().chain([Step { formula: formula.clone(), variable }]).collect();
            for version in &below.versions {
                let shared = overlap(span, (version.from, version.to)).filter(|_| version.is_on_timeline);
                let Some(span) = shared.or(self.ever.then_some(span)) else { continue };
                if version.snapshot.function == MeterFunction::Formula {
                    let depth = self.keys.len();
                    match self.descend(below, version, span, &path) {
                        // What cannot be followed was never counted.
                        Err(_) if self.ever => self.keys.truncate(depth),
                        done => done?,
                    }
                } else {
                    self.add(Leaf { path: path.clone(), meter: below, version, from: span.0, to: span.1 })?;
                }
            }
        }
        self.keys.pop();
        Ok(())
    }

    fn add(&mut self, leaf: Leaf<'m>) -> Result<()> {
        self.names.insert(leaf.path.iter().map(|step| step.variable).collect());
        if self.names.len() > COMPONENTS_MAX {
            let key = self.keys.first().copied().unwrap_or_default();
            let detail = format!("the FORMULA meter {key} combines more than {COMPONENTS_MAX} meters");
            return Err(Error::business_rule(detail));
        }
        self.leaves.push(leaf);
        Ok(())
    }
}

/// Takes the lock under which the meters of a workspace are written: a formula that is checked stays as it was checked.
pub(super) async fn lock(scope: &Scope, tx: &mut Tx) -> Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('meter formulas ' || $1::text, 0))")
        .bind(scope.workspace_id)
        .execute(tx.conn())
        .await
        .context("locking the meters of a workspace")?;
    Ok(())
}

/// Every meter that a formula names is there and live.
///
/// # Errors
/// `NotFound`; `Rule` for a draft, an archived meter and the meter itself.
pub(super) async fn check_named(scope: &Scope, tx: &mut Tx, meter: &Meter) -> Result<()> {
    for variable in meter.formula.iter().flat_map(|formula| &formula.variables) {
        if variable.meter_key == meter.key {
            let detail = format!("the formulas go in a circle: {0} > {0}", meter.key);
            return Err(Error::business_rule(detail));
        }
        let status: Option<String> =
            sqlx::query_scalar("SELECT status FROM meter WHERE workspace_id = $1 AND key = $2")
                .bind(scope.workspace_id)
                .bind(&variable.meter_key)
                .fetch_optional(tx.conn())
                .await
                .context("looking for the meter of a formula")?;
        match status.as_deref() {
            None => return Err(Error::not_found("meter", &variable.meter_key)),
            Some("active") => {}
            Some(status) => {
                return Err(Error::business_rule(format!("the meter {} is {status}", variable.meter_key)));
            }
        }
    }
    Ok(())
}

/// Every FORMULA meter of the workspace can be evaluated, with what this transaction has written.
///
/// # Errors
/// As [`Meters::components`], and for meters that do not go together.
pub(super) async fn check_all(scope: &Scope, tx: &mut Tx) -> Result<()> {
    let exists: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM entity_version
                        WHERE workspace_id = $1 AND entity_type = 'meter' AND status <> 'draft' AND cancelled_at IS NULL
                          AND snapshot ->> 'function' = 'FORMULA')",
    )
    .bind(scope.workspace_id)
    .fetch_one(tx.conn())
    .await
    .context("looking for FORMULA meters")?;
    if !exists {
        return Ok(());
    }
    let meters = Meters::load(tx.conn(), scope.workspace_id).await?;
    meters.check()?;
    let bound: Vec<(String, serde_json::Value)> = sqlx::query_as(
        "SELECT m.key, v.snapshot -> 'window'
         FROM product_meter_binding b JOIN meter m ON m.id = b.meter_id JOIN entity_version v ON v.entity_id = b.id
         WHERE b.workspace_id = $1 AND m.function = 'FORMULA' AND b.status = 'active' AND v.status <> 'draft'
           AND v.cancelled_at IS NULL AND v.snapshot ->> 'window' IS NOT NULL",
    )
    .bind(scope.workspace_id)
    .fetch_all(tx.conn())
    .await
    .context("reading the windows of bindings")?;
    for (key, window) in bound {
        let window = Window::deserialize(&window).map_err(|error| Error::internal("reading a window", error))?;
        check_window(&meters, &key, &window)?;
    }
    Ok(())
}

fn check_window(meters: &Meters, key: &str, window: &Window) -> Result<()> {
    let Some(meter) = meters.get(key) else { return Ok(()) };
    let has_parts = window.span().is_ok_and(rating::Span::has_parts);
    for version in meter.formulas() {
        check_leaves(key, &meters.components(meter, version)?, has_parts)?;
    }
    Ok(())
}

/// A binding may give a FORMULA meter this window.
///
/// # Errors
/// `Rule` where a meter that it names cannot be cut so.
pub(crate) async fn check_bound(scope: &Scope, tx: &mut Tx, meter: &Meter, window: Option<&Window>) -> Result<()> {
    let Some(window) = window.filter(|_| meter.function == MeterFunction::Formula) else { return Ok(()) };
    lock(scope, tx).await?;
    check_window(&Meters::load(tx.conn(), scope.workspace_id).await?, &meter.key, window)
}

/// A FORMULA meter whose published versions name the meter, now or later.
pub(super) async fn user_of(scope: &Scope, tx: &mut Tx, key: &str, now: Instant) -> Result<Option<String>> {
    sqlx::query_scalar(
        "SELECT m.key FROM meter m JOIN entity_version v ON v.entity_id = m.id
         WHERE m.workspace_id = $1 AND m.status = 'active' AND v.status <> 'draft' AND v.cancelled_at IS NULL
           AND (v.effective_to IS NULL OR v.effective_to > $3) AND v.snapshot ->> 'function' = 'FORMULA'
           AND v.snapshot -> 'formula' -> 'variables' @> jsonb_build_array(jsonb_build_object('meter_key', $2::text))
         LIMIT 1",
    )
    .bind(scope.workspace_id)
    .bind(key)
    .bind(now)
    .fetch_optional(tx.conn())
    .await
    .context("looking for formulas that name a meter")
}

/// FORMULA meters of which any version, also a draft, names the meter.
pub(super) async fn users_of(scope: &Scope, tx: &mut Tx, id: uuid::Uuid) -> Result<Vec<uuid::Uuid>> {
    sqlx::query_scalar(
        "SELECT DISTINCT v.entity_id FROM meter m JOIN entity_version v ON v.workspace_id = $1 AND v.entity_type = 'meter'
         WHERE m.id = $2 AND v.snapshot ->> 'function' = 'FORMULA'
           AND v.snapshot -> 'formula' -> 'variables' @> jsonb_build_array(jsonb_build_object('meter_key', m.key))",
    )
    .bind(scope.workspace_id)
    .bind(id)
    .fetch_all(tx.conn())
    .await
    .context("looking for formulas that name a meter")
}

/// The meters that read events for a meter as it is tried: itself, or what a FORMULA meter names, as they are now.
///
/// # Errors
/// As [`Meters::components`].
pub(super) async fn readers(
    scope: &Scope,
    conn: &mut PgConnection,
    meter: &Meter,
    compiled: CompiledMeter,
) -> Result<Vec<(CompiledMeter, Option<Component>)>> {
    if meter.function != MeterFunction::Formula {
        return Ok(vec![(compiled, None)]);
    }
    let meters = Meters::load(conn, scope.workspace_id).await?;
    let snapshot = serde_json::from_value(crate::version::Versioned::snapshot(meter))
        .map_err(|error| Error::internal("reading a meter that is tried", error))?;
    let (from, to) = (scope.now(), Some(scope.now() + TimeDelta::microseconds(1)));
    let version = MeterVersion { id: compiled.version_id, from, to, is_on_timeline: true, snapshot };
    let tried = MeterTimeline {
        id: meter.id,
        key: meter.key.clone(),
        metric_key: meter.metric_key.clone(),
        versions: Vec::new(),
    };
    let leaves = meters.components(&tried, &version)?;
    check_leaves(&meter.key, &leaves, compiled.window.has_parts())?;
    let nobody = VersionId(uuid::Uuid::nil());
    let read = |leaf: &Leaf<'_>| leaf.compile(&compiled, nobody).map(|(meter, part)| (meter, Some(part)));
    leaves.iter().map(read).collect()
}
