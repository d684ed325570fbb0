//! What librdkafka cannot recover from in this process: a producer whose numbering is lost, a member that another node of
//! the same name has fenced. The process has to be started anew.

use std::sync::Arc;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;

/// The first such state, once there is one. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fatal(Arc<watch::Sender<Option<String>>>);

impl Default for Fatal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Fatal {
    /// Raises what is fatal, and nothing else.
    pub fn note(&self, who: &str, error: &KafkaError, during: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.raise(format!("{who} cannot go on: {error} ({during})"));
        }
    }

    /// The first reason stays.
    pub fn raise(&self, reason: String) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(reason, "the event log cannot be worked with any more");
                *first = Some(reason);
            }
            is_first
        });
    }

    /// Waits for it.
    pub async fn wait(&self) -> String {
        let mut raised = self.0.subscribe();
        let reason = raised.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        // Always there: `self` keeps the channel open.
        reason.unwrap_or_default()
    }
}
