//! Payments over HTTP: step 1 is a write of its own, which is committed before a provider is asked. What is stored under the
//! request's idempotency keys is what step 1 wrote down, so that a repeat finds the payment and answers how far it is now.

use axum::http::StatusCode;
use ledger::Outcome;
use payments::charge::Attempt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Answer, Data, Refusal, Write, answer};

/// A payment whose step 1 is committed, by this call or by an earlier one under the same key.
pub(crate) struct Begun<T> {
    /// What step 1 wrote down.
    pub opened: T,
    /// Whether an earlier call began it under the key in its body: 200 in the place of 201.
    is_repeated: bool,
    /// Whether it was the key in the header.
    is_replayed: bool,
}

impl<T: Serialize + DeserializeOwned> Begun<T> {
    /// Commits step 1.
    pub async fn commit(write: Write, opened: Outcome<T>) -> Result<Self, Refusal> {
        let begun = Self { opened: opened.value, is_repeated: opened.replayed, is_replayed: false };
        write.created(Data(&begun.opened)).await?;
        Ok(begun)
    }

    /// The payment that the first call with this header began; a refusal is passed on.
    pub fn repeated(refusal: Refusal) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Stored<T> {
            data: T,
        }
        let Refusal::Replayed(answer) = refusal else { return Err(refusal) };
        match serde_json::from_slice::<Stored<T>>(&answer.body) {
            Ok(stored) => Ok(Self { opened: stored.data, is_repeated: false, is_replayed: true }),
            Err(_) => Err(Refusal::Replayed(answer)),
        }
    }

    /// Whether somebody may have asked the provider before.
    pub fn attempt(&self) -> Attempt {
        if self.is_repeated || self.is_replayed { Attempt::Again } else { Attempt::First }
    }

    /// Answers with how far the payment is; `status` of the call that begins it.
    pub fn answer(&self, status: StatusCode, body: impl Serialize) -> Answer {
        let status = if self.is_repeated { StatusCode::OK } else { status };
        let mut response = answer::json(status, &Data(body))?;
        if self.is_replayed {
            answer::mark_replayed(&mut response);
        }
        Ok(response)
    }
}
