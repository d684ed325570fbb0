//! Usage on invoices: from the closed window, after the grace, one line per rating, one invoice per wallet pin.

use domain::Currency;
use serde_json::json;

use crate::fixture::{World, at};

fn tiers() -> serde_json::Value {
    json!([
        {"tier_order": 1, "up_to": "1000", "unit_amount": "0.10", "flat_amount": "0"},
        {"tier_order": 2, "up_to": "10000", "unit_amount": "0.08", "flat_amount": "0"},
        {"tier_order": 3, "up_to": null, "unit_amount": "0.05", "flat_amount": "0"}
    ])
}

/// pricing-models.md, documented: 5,000 units are 420.00 STAIRCASE and 400.00 VOLUME; allowances.md vector 8: 140.00.
#[tokio::test]
async fn usage_is_billed_from_the_sealed_window_after_the_grace() {
    let world = World::new("2026-01-01").await;
    let staircase = world.product_with("USAGE", "STAIRCASE", "EUR", tiers()).await;
    let volume = world.product_with("USAGE", "VOLUME", "EUR", tiers()).await;
    let included = world.product_with("USAGE", "STAIRCASE", "EUR", tiers()).await;
    let plan = world.plan(&[(staircase, "0"), (volume, "0"), (included, "1000")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    let day = "2026-01-10";
    world
        .db_usage(
            id,
            &[
                (day, staircase, "4000", None),
                (day, volume, "5000", None),
                (day, included, "2500", None),
                (day, staircase, "1000", None),
            ],
        )
        .await;
    world.advance("2026-02-01T00:30:00Z").await;
    let draft = world.invoices(id).await;
    assert_eq!((draft.len(), draft[0].invoice.status.as_str()), (1, "draft"), "within the grace");
    world.advance("2026-02-01T01:00:00Z").await;
    let invoices = world.invoices(id).await;
    assert_eq!((invoices.len(), invoices[0].invoice.status.as_str()), (1, "finalized"));
    assert_eq!(invoices[0].invoice.id, draft[0].invoice.id, "the draft itself is finalized");
    let amounts: Vec<_> =
        invoices[0].lines.iter().map(|line| (line.line.product_id, line.line.amount.to_string())).collect();
    assert_eq!(amounts.len(), 3);
    for expected in [(staircase, "420.00 EUR"), (volume, "400.00 EUR"), (included, "140.00 EUR")] {
        assert!(amounts.contains(&(Some(expected.0), expected.1.to_owned())), "{expected:?} in {amounts:?}");
    }
    let line = invoices[0].lines.iter().find(|line| line.line.product_id == Some(staircase)).unwrap();
    let mut conn = world.store.pool().acquire().await.unwrap();
    let atoms = billing::invoice::read::atoms(&world.scope, &mut conn, line.line.invoice_id, line.line.id, &[])
        .await
        .unwrap()
        .data;
    let tiers: Vec<_> = atoms[0].tiers.iter().map(|tier| tier.amount.to_string()).collect();
    assert_eq!(
        (atoms.len(), tiers, atoms[0].event_count),
        (1, vec!["100.00 EUR".into(), "320.00 EUR".into()], Some(2))
    );
    assert_eq!(atoms[0].price_version_id, line.line.price_version_id);
}

/// In advance a renewal has the fee of the next period and the usage of the one that ended (billing-cycles 3.3).
#[tokio::test]
async fn a_renewal_in_advance_carries_the_usage_that_ended() {
    let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": "0"})).await;
    let fee = world.product("FIXED_CHARGE", "30.00").await;
    let units = world.product("USAGE", "0.01").await;
    let plan = world.plan(&[(fee, "0"), (units, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-31T23:59:59Z", units, "100", None)]).await;
    world.advance("2026-02-01").await;
    let invoices = world.invoices(id).await;
    let lines: Vec<Vec<_>> = invoices
        .iter()
        .map(|invoice| {
            invoice.lines.iter().map(|l| (l.line.period_start.unwrap(), l.line.amount.to_string())).collect()
        })
        .collect();
    assert_eq!(
        lines,
        [
            vec![(at("2026-01-01"), "30.00 EUR".to_owned())],
            vec![(at("2026-02-01"), "30.00 EUR".to_owned()), (at("2026-01-01"), "1.00 EUR".to_owned())],
        ]
    );
    let closed = world.cancel(id, json!({})).await.unwrap().subscription;
    assert_eq!(closed.status.as_str(), "CANCELLED");
    world.db_usage(id, &[("2026-02-01", units, "300", None)]).await;
    world.advance("2026-03-01").await;
    let last = world.invoices(id).await.pop().unwrap();
    assert_eq!(
        (last.lines.len(), last.invoice.total.to_string().as_str()),
        (1, "3.00 EUR"),
        "after cancellation: usage only"
    );
}

/// usage.md R8: pinned usage has an invoice of its own.
#[tokio::test]
async fn pinned_usage_goes_to_an_invoice_of_its_own() {
    let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": "0"})).await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "3", None), ("2026-01-06", units, "4", Some(Currency::USD))]).await;
    world.advance("2026-02-02").await;
    let mut totals: Vec<_> = world.bills(id).await.into_iter().map(|(_, total, _)| total).collect();
    totals.sort();
    assert_eq!(totals, ["3.00 EUR", "4.00 EUR"]);
}

/// usage.md: a trial is counted and never charged; its window is sealed as every other, also when the first period in
/// advance is finalized at the same instant.
#[tokio::test]
async fn usage_of_a_trial_is_free() {
    for (grace, fees) in [("1h", 0), ("0", 1)] {
        let world = World::with("2026-01-01", "UTC", json!({"usage_grace_period": grace})).await;
        let (units, fee) = (world.product("USAGE", "1").await, world.product("FIXED_CHARGE", "31.00").await);
        let plan = world.plan(&[(units, "0"), (fee, "0")][..=fees]).await;
        let id = world.subscribe(plan, json!({"trial_duration_days": 10})).await.subscription.id;
        world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
        world.advance("2026-01-31").await;
        let totals: Vec<_> = world.bills(id).await.into_iter().map(|(_, total, _)| total).collect();
        assert_eq!(totals, vec!["31.00 EUR"; fees], "{grace}");
        let statuses: Vec<String> = sqlx::query_scalar("SELECT status FROM usage_window ORDER BY window_start")
            .fetch_all(world.store.pool())
            .await
            .unwrap();
        assert_eq!(statuses, ["sealed"], "{grace}");
    }
}

/// Where invoices are finalized by hand nothing is sealed by itself, also when that was decided within the grace.
#[tokio::test]
async fn a_window_stays_open_for_the_operator() {
    let world = World::new("2026-01-01").await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
    world.advance("2026-02-01").await;
    sqlx::query(r#"UPDATE organization SET settings = '{"auto_finalize_invoices": "false"}'"#)
        .execute(world.store.pool())
        .await
        .unwrap();
    world.advance("2026-02-02").await;
    assert_eq!(world.bills(id).await, [(at("2026-02-01"), "3.00 EUR".to_owned(), "draft".to_owned())]);
    assert!(world.log.calls.lock().unwrap().iter().all(|(call, _)| *call == "period_end"));
}

/// Rule C2: the draft follows the totals until it is finalized; a preview of the running period gives way to the run.
#[tokio::test]
async fn drafts_are_recomputed_until_finalized() {
    let world = World::new("2026-01-01").await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
    let generate = async || -> domain::Result<billing::invoice::Invoice> {
        let request = billing::invoice::GenerateInvoiceRequest {
            subscription_id: id,
            billing_period_start: Some(at("2026-01-01")),
            billing_period_end: Some(at("2026-02-01")),
        };
        let mut tx = world.store.begin("generate").await.unwrap();
        let invoice = world.billing.generate_invoice(&world.scope, &mut tx, &request).await?;
        tx.commit().await?;
        Ok(invoice.invoice)
    };
    world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
    let preview = generate().await.unwrap();
    assert_eq!((preview.total.to_string().as_str(), preview.status.as_str()), ("3.00 EUR", "draft"));
    world.db_usage(id, &[("2026-01-05", units, "5", None)]).await;
    let again = generate().await.unwrap();
    assert_eq!((again.id, again.total.to_string().as_str()), (preview.id, "5.00 EUR"));
    world.advance("2026-02-01T00:10:00Z").await;
    let run = world.invoices(id).await;
    assert_eq!(run.len(), 1, "the preview is gone");
    assert_ne!(run[0].invoice.id, preview.id);
    world.db_usage(id, &[("2026-01-05", units, "7", None)]).await;
    let recomputed = generate().await.unwrap();
    assert_eq!((recomputed.id, recomputed.total.to_string().as_str()), (run[0].invoice.id, "7.00 EUR"));
    world.advance("2026-02-02").await;
    assert_eq!(world.bills(id).await, [(at("2026-01-01"), "7.00 EUR".to_owned(), "finalized".to_owned())]);
    assert_eq!(generate().await.unwrap_err().code(), "CONFLICT");
}

/// usage.md 5: in the grace the draft shows what was counted since, also where there was nothing to bill before, and what the
/// usage of another wallet makes of it. Nothing else recomputes it here: the clock stands.
#[tokio::test]
async fn a_draft_follows_the_usage_of_the_grace() {
    for auto_finalize in ["true", "false"] {
        let world = World::with("2026-01-01", "UTC", json!({"auto_finalize_invoices": auto_finalize})).await;
        let units = world.product("USAGE", "1").await;
        let plan = world.plan(&[(units, "0")]).await;
        let id = world.subscribe(plan, json!({})).await.subscription.id;
        let idle = world.subscribe(plan, json!({})).await.subscription.id;
        let recompute = async || world.billing.recompute_drafts(at("2027-01-01")).await.unwrap();
        let day = "2026-01-05";
        world.db_usage(id, &[(day, units, "3", None)]).await;
        world.advance("2026-02-01T00:10:00Z").await;
        let draft = world.invoices(id).await.remove(0).invoice;
        assert_eq!((draft.total.to_string().as_str(), world.bills(idle).await.len()), ("3.00 EUR", 0));
        assert_eq!(recompute().await, 0, "no usage since");
        world.db_usage(id, &[(day, units, "3", None), (day, units, "4", None)]).await;
        world.db_usage(idle, &[(day, units, "5", None), (day, units, "6", Some(Currency::USD))]).await;
        assert_eq!((recompute().await, recompute().await), (2, 0));
        let again = world.invoices(id).await.remove(0);
        assert_eq!((again.invoice.id, again.invoice.total.to_string().as_str()), (draft.id, "7.00 EUR"));
        assert_eq!(again.lines[0].line.quantity.to_string(), "7");
        assert_eq!(again.invoice.updated_at, at("2026-02-01T00:10:00Z"), "the time of its clock");
        let mut totals: Vec<_> = world.bills(idle).await.into_iter().map(|(_, total, _)| total).collect();
        totals.sort();
        assert_eq!(totals, ["5.00 EUR", "6.00 EUR"]);
        world.db_usage(id, &[(day, units, "9", None)]).await;
        world.advance("2026-02-02").await;
        // Finalized invoices follow nothing; drafts that wait for the operator do.
        assert_eq!(recompute().await, usize::from(auto_finalize == "false"));
        assert_eq!(world.bills(id).await[0].1, "9.00 EUR");
        assert_eq!(followed(&world).await, if auto_finalize == "false" { 2 } else { 0 });
    }
}

async fn followed(world: &World) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM followed_run").fetch_one(world.store.pool()).await.unwrap()
}

/// A preview follows the running period, and gives way with it. What cannot be computed stops no other draft, and waits for
/// the next change of its usage.
#[tokio::test]
async fn a_draft_that_cannot_be_computed_stays_and_stops_no_other() {
    let world = World::new("2026-01-01").await;
    let (units, others) = (world.product("USAGE", "1").await, world.product("USAGE", "2").await);
    let mut ids = Vec::new();
    for product in [units, others] {
        let plan = world.plan(&[(product, "0")]).await;
        let id = world.subscribe(plan, json!({"billing_timing": "IN_ARREARS"})).await.subscription.id;
        world.db_usage(id, &[("2026-01-05", product, "1", None)]).await;
        let request = billing::invoice::GenerateInvoiceRequest {
            subscription_id: id,
            billing_period_start: None,
            billing_period_end: None,
        };
        let mut tx = world.store.begin("generate").await.unwrap();
        world.billing.generate_invoice(&world.scope, &mut tx, &request).await.unwrap();
        tx.commit().await.unwrap();
        world.db_usage(id, &[("2026-01-05", product, "3", None)]).await;
        ids.push(id);
    }
    sqlx::query("UPDATE subscription SET timezone = 'Nowhere' WHERE id = $1")
        .bind(ids[0])
        .execute(world.store.pool())
        .await
        .unwrap();
    let totals = async || (world.bills(ids[0]).await[0].1.clone(), world.bills(ids[1]).await[0].1.clone());
    let recompute = async || world.billing.recompute_drafts(at("2027-01-01")).await.unwrap();
    assert_eq!((recompute().await, totals().await), (2, ("1.00 EUR".into(), "6.00 EUR".into())));
    assert_eq!(recompute().await, 0, "tried once");
    sqlx::query("UPDATE subscription SET timezone = 'UTC'").execute(world.store.pool()).await.unwrap();
    world.db_usage(ids[0], &[("2026-01-05", units, "4", None)]).await;
    assert_eq!((recompute().await, totals().await), (1, ("4.00 EUR".into(), "6.00 EUR".into())));
    world.advance("2026-02-01T02:00:00Z").await;
    assert_eq!((totals().await, followed(&world).await), (("4.00 EUR".into(), "6.00 EUR".into()), 0));
}

/// Finalizing by hand seals; a failure after the seal takes it back (rule C2).
#[tokio::test]
async fn finalizing_by_hand_seals_the_window() {
    let world = World::with("2026-01-01", "UTC", json!({"auto_finalize_invoices": "false"})).await;
    let units = world.product("USAGE", "1").await;
    let plan = world.plan(&[(units, "0")]).await;
    let id = world.subscribe(plan, json!({})).await.subscription.id;
    world.db_usage(id, &[("2026-01-05", units, "3", None)]).await;
    world.advance("2026-02-10").await;
    let draft = world.invoices(id).await.remove(0).invoice;
    assert_eq!(draft.status.as_str(), "draft");
    let finalize = async || -> domain::Result<billing::invoice::Invoice> {
        let mut tx = world.store.begin("finalize").await.unwrap();
        let request = billing::invoice::FinalizeInvoiceRequest::default();
        let done = world.billing.finalize_invoice(&world.scope, &mut tx, draft.id, &request).await?;
        tx.commit().await?;
        Ok(done.invoice.invoice)
    };
    *world.log.down.lock().unwrap() = true;
    assert_eq!(finalize().await.unwrap_err().code(), "SERVICE_UNAVAILABLE");
    *world.log.down.lock().unwrap() = false;
    // The organization is away for the moment of the booking.
    sqlx::query("ALTER TABLE document_series RENAME TO document_series_away")
        .execute(world.store.pool())
        .await
        .unwrap();
    assert_eq!(finalize().await.unwrap_err().code(), "INTERNAL_ERROR");
    sqlx::query("ALTER TABLE document_series_away RENAME TO document_series")
        .execute(world.store.pool())
        .await
        .unwrap();
    let calls: Vec<_> = world.log.calls.lock().unwrap().iter().map(|(call, _)| *call).collect();
    assert_eq!(calls, ["period_end", "seal", "reopen"]);
    let done = finalize().await.unwrap();
    assert_eq!((done.status.as_str(), done.invoice_number.as_deref()), ("finalized", Some("INV-000001")));
    assert_eq!(finalize().await.unwrap_err().code(), "INVALID_TRANSITION");
}
