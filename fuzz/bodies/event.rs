// The body of the target `event`: any bytes are refused with a reason or read as an event, at the door and from the log,
// and what was read is read again as the same.

use domain::{Instant, UsageEvent, UsageEventId, WorkspaceId};
use ingest::door::{NewEvent, Submission, cloud_events, wire};
use ingest::record::Record;
use uuid::Uuid;

fn accepted(event: NewEvent) -> UsageEvent {
    UsageEvent {
        id: UsageEventId(Uuid::nil()),
        workspace_id: WorkspaceId(Uuid::nil()),
        customer_id: event.customer_id,
        subscription_id: event.subscription_id,
        product_id: event.product_id,
        metric_key: event.metric_key,
        quantity: event.quantity,
        timestamp: event.timestamp,
        idempotency_key: event.idempotency_key,
        price_key: event.price_key,
        price_key_remapped: false,
        external_cost: event.external_cost,
        wallet_currency: event.wallet_currency,
        hold_id: event.hold_id,
        dimension_vars: event.dimension_vars,
        pricing_vars: event.pricing_vars,
        accepted_at: Instant::UNIX_EPOCH,
        catalog_revision: 1,
    }
}

fn read(json: &str) {
    let Ok(event) = NewEvent::read(json) else { return };
    let event = accepted(event);
    let record = Record::Usage(Box::new(event.clone()));
    assert_eq!(Record::decode(&record.encode()), Ok(record), "the log carries what the door read");
    let shown = wire::to_json(&event);
    let again = NewEvent::read(&shown.to_string()).expect("what is shown can be sent again");
    assert_eq!(wire::to_json(&accepted(again)), shown);
}

pub fn run(data: &[u8]) {
    if let Ok(record) = Record::decode(data) {
        assert_eq!(Record::decode(&record.encode()), Ok(record), "a record is written as it was read");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Submission::read(text) {
        Ok(Submission::Single(event)) => read(event),
        Ok(Submission::Batch(events)) => events.into_iter().for_each(read),
        Err(_) => {}
    }
    if let Ok(event) = cloud_events::to_usage_event(text) {
        read(&event);
    }
}
