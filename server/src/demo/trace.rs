//! The requests to bill: a CSV of the form of the public LLM traces, or a generator of the same shape.

use std::path::Path;

use chrono::{DateTime, DurationRound, NaiveDateTime, TimeDelta, TimeZone, Utc};
use serde::Deserialize;

use crate::failure::Failure;

/// Requests that are generated without a trace.
pub const GENERATED_REQUESTS: usize = 20_000;

/// One request to the LLM API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When, at microseconds.
    pub timestamp: DateTime<Utc>,
    /// Tokens in.
    pub input_tokens: u64,
    /// Tokens out.
    pub output_tokens: u64,
}

#[derive(Deserialize)]
struct Row {
    #[serde(rename = "TIMESTAMP")]
    timestamp: String,
    #[serde(rename = "ContextTokens")]
    input_tokens: u64,
    #[serde(rename = "GeneratedTokens")]
    output_tokens: u64,
}

/// Reads `TIMESTAMP,ContextTokens,GeneratedTokens`; times without an offset are UTC.
///
/// # Errors
/// For a file that cannot be read, with the line.
pub fn read(path: &Path) -> Result<Vec<Request>, Failure> {
    let reading = format!("reading {}", path.display());
    let mut reader = csv::Reader::from_path(path).map_err(|error| Failure::work(&reading, error))?;
    let mut requests = Vec::new();
    for (index, row) in reader.deserialize::<Row>().enumerate() {
        let row = row.map_err(|error| Failure::work(&reading, error))?;
        let timestamp = parse_time(&row.timestamp).ok_or_else(|| {
            Failure::usage(format!("{reading}: line {}: {:?} is not a time", index + 2, row.timestamp))
        })?;
        requests.push(Request { timestamp, input_tokens: row.input_tokens, output_tokens: row.output_tokens });
    }
    if requests.is_empty() { Err(Failure::usage(format!("{reading}: no requests"))) } else { Ok(requests) }
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").map(|time| time.and_utc()))
        .ok()?;
    time.duration_trunc(TimeDelta::microseconds(1)).ok()
}

/// The same requests on every machine: bursts of short prompts, some long ones, answers of a few hundred tokens.
#[must_use]
pub fn generate(count: usize) -> Vec<Request> {
    let mut random = Random(0x4b6f_6e74_6f72_696f);
    // A Monday; any month that has passed serves.
    let Some(mut timestamp) = Utc.with_ymd_and_hms(2025, 6, 16, 8, 0, 0).single() else { return Vec::new() };
    let mut requests = Vec::with_capacity(count);
    for _ in 0..count {
        timestamp += TimeDelta::microseconds(random.below(360_000).cast_signed());
        let long = random.below(10) == 0;
        let input_tokens = if long { 2_000 + random.below(12_000) } else { 20 + random.below(1_500) };
        // The smaller of two draws: short answers are more frequent than long ones.
        let output_tokens = 1 + random.below(900).min(random.below(900));
        requests.push(Request { timestamp, input_tokens, output_tokens });
    }
    requests
}

/// SplitMix64: fixed for ever, unlike a library's generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_same_everywhere() {
        let requests = generate(3);
        assert_eq!(requests, generate(3));
        assert_eq!(requests, generate(100)[..3]);
        let sum: u64 = generate(1_000).iter().map(|request| request.input_tokens + request.output_tokens).sum();
        assert_eq!(sum, SUM_OF_1000);
        let last = generate(GENERATED_REQUESTS)[GENERATED_REQUESTS - 1].timestamp;
        assert_eq!(last.format("%Y-%m").to_string(), "2025-06");
    }

    /// Found by running it once; a change of the generator changes every published figure of the demo.
    const SUM_OF_1000: u64 = 1_761_112;

    #[test]
    fn reads_the_form_of_the_public_traces() {
        let path = std::env::temp_dir().join(format!("kontorion-trace-{}.csv", uuid::Uuid::new_v4()));
        std::fs::write(&path, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805907,374,44\n").unwrap();
        let requests = read(&path).unwrap();
        assert_eq!(requests[0].timestamp.to_rfc3339(), "2023-11-16T18:15:46.680590+00:00");
        assert_eq!((requests[0].input_tokens, requests[0].output_tokens), (374, 44));
        std::fs::write(&path, "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-1,2\n").unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
