//! `kontorion usage rejected …`: what was accepted and could not be billed, through the API like any client, so that a
//! replay passes the same door as every event.

use client::Api;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::Access;
use crate::failure::Failure;
use crate::table::table;

/// A rejected event, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Rejection {
    id: Uuid,
    customer_id: Option<Uuid>,
    metric_key: Option<String>,
    code: String,
    message: String,
    status: String,
    rejected_at: String,
}

fn api(access: &Access) -> Result<Api, Failure> {
    Api::new(access.url.trim_end_matches('/'), &access.api_key).map_err(|error| Failure::work("connecting", error))
}

async fn fetch(api: &Api, status: &str, code: Option<&str>) -> Result<Vec<Rejection>, Failure> {
    let code = code.map(|code| format!("&code={code}")).unwrap_or_default();
    api.list(&format!("/v1/usage-event-rejections?status={status}{code}"))
        .await
        .map_err(|error| Failure::work("listing rejected events", error))
}

/// Prints a table of rejections.
///
/// # Errors
/// When the server refuses or does not answer.
pub async fn list(access: &Access, status: &str, code: Option<&str>) -> Result<(), Failure> {
    let rejections = fetch(&api(access)?, status, code).await?;
    let header = ["id", "rejected at", "status", "code", "metric", "customer", "reason"];
    let mut table = table(&header, header.len());
    for row in &rejections {
        table.add_row([
            row.id.to_string(),
            row.rejected_at.clone(),
            row.status.clone(),
            row.code.clone(),
            row.metric_key.clone().unwrap_or_default(),
            row.customer_id.map(|id| id.to_string()).unwrap_or_default(),
            row.message.clone(),
        ]);
    }
    println!("{table}\n{} rejected events", rejections.len());
    Ok(())
}

/// Sends rejections again; without ids all open ones with this code. One that is refused again does not stop the others.
///
/// # Errors
/// When one of them was refused.
pub async fn replay(access: &Access, ids: Vec<Uuid>, code: Option<&str>) -> Result<(), Failure> {
    let api = api(access)?;
    let ids = match ids.as_slice() {
        [] => fetch(&api, "open", code).await?.into_iter().map(|row| row.id).collect(),
        _ => ids,
    };
    let mut refused = 0;
    for id in &ids {
        let outcome = api.post::<Value>(&format!("/v1/usage-event-rejections/{id}/replay"), &json!({})).await;
        if let Err(error) = outcome {
            eprintln!("{id}: {error}");
            refused += 1;
        }
    }
    println!("{} of {} rejected events were sent again", ids.len() - refused, ids.len());
    if refused == 0 { Ok(()) } else { Err(Failure::found(format!("{refused} were refused again"))) }
}
