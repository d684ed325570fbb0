//! Rows on their way into `usage_event`: binary COPY, sorted by subscription so that an index page takes several at once.

use domain::{Instant, Result};
use rust_decimal::Decimal;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::super::{CountedEvent, vars};
use super::row::columns;

/// Fields of a row: those of `columns!()`.
const FIELDS: i16 = 23;
/// Bytes of a row without long texts; a first guess for the buffer.
const ROW_BYTES: usize = 420;
/// Rows that are sent at once: the buffer is bounded and the server parses while the next ones are encoded.
const CHUNK_ROWS: usize = 2_000;
/// 2000-01-01T00:00:00Z, from which PostgreSQL counts, in microseconds since 1970.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Writes the rows in this transaction.
///
/// # Errors
/// As every statement; the transaction is then of no use any more.
pub(super) async fn write(tx: &mut Tx, rows: &[CountedEvent]) -> Result<()> {
    const OPERATION: &str = "writing counted events";
    let mut sorted: Vec<&CountedEvent> = rows.iter().collect();
    sorted.sort_unstable_by_key(|row| (row.event.subscription_id, row.event.timestamp, row.position));
    tx.set_copying(true);
    let mut copy = tx
        .conn()
        .copy_in_raw(concat!("COPY usage_event (", columns!(), ") FROM STDIN (FORMAT binary)"))
        .await
        .context(OPERATION)?;
    let mut buffer = Buffer(Vec::with_capacity(CHUNK_ROWS.min(rows.len()) * ROW_BYTES + 32));
    buffer.header();
    for chunk in sorted.chunks(CHUNK_ROWS) {
        chunk.iter().for_each(|row| buffer.row(row));
        copy.send(buffer.0.as_slice()).await.context(OPERATION)?;
        buffer.0.clear();
    }
    buffer.trailer();
    copy.send(buffer.0.as_slice()).await.context(OPERATION)?;
    copy.finish().await.context(OPERATION)?;
    tx.set_copying(false);
    Ok(())
}

/// A buffer in PostgreSQL's binary COPY format.
struct Buffer(Vec<u8>);

impl Buffer {
    fn header(&mut self) {
        self.0.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    }

    fn trailer(&mut self) {
        self.0.extend_from_slice(&(-1_i16).to_be_bytes());
    }

    fn row(&mut self, counted: &CountedEvent) {
        let event = &counted.event;
        self.0.extend_from_slice(&FIELDS.to_be_bytes());
        for id in [event.id.0, event.workspace_id.0, event.customer_id.0, event.subscription_id.0, event.product_id.0] {
            self.uuid(id);
        }
        self.text(&event.metric_key);
        let (mantissa, scale) = shortest(event.quantity.units(), domain::quantity::SCALE);
        self.numeric(mantissa, scale);
        self.instant(event.timestamp);
        self.instant(event.accepted_at);
        self.text(&event.idempotency_key);
        self.optional(event.price_key.as_deref(), Self::text);
        self.bool(event.price_key_remapped);
        let (amount, currency) = event.external_cost.as_ref().map(|(a, c)| (*a, c.as_str())).unzip();
        self.optional(amount, Self::decimal);
        self.optional(currency, Self::text);
        self.optional(event.wallet_currency.as_ref().map(|c| c.as_str()), Self::text);
        self.optional(event.hold_id.map(|id| id.0), Self::uuid);
        self.optional(vars::to_json(&event.pricing_vars).as_deref(), Self::text);
        self.optional(vars::to_json(&event.dimension_vars).as_deref(), Self::text);
        self.bool(counted.late);
        self.instant(counted.window_start);
        self.field(&super::partition_column(counted.partition).to_be_bytes());
        self.field(&counted.position.as_i64().to_be_bytes());
        self.field(&counted.payload_hash.to_be_bytes());
    }

    /// A field: its length, then its bytes. Texts are far below the 2 GiB that a length can say (the door bounds them).
    fn field(&mut self, bytes: &[u8]) {
        let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.0.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }

    fn uuid(&mut self, id: Uuid) {
        self.field(id.as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.field(text.as_bytes());
    }

    fn bool(&mut self, value: bool) {
        self.field(&[u8::from(value)]);
    }

    fn instant(&mut self, instant: Instant) {
        self.field(&(instant.timestamp_micros() - POSTGRES_EPOCH_MICROS).to_be_bytes());
    }

    fn decimal(&mut self, value: Decimal) {
        self.numeric(value.mantissa(), value.scale());
    }

    /// PostgreSQL's `numeric`: digits to base 10,000, the weight of the first, the sign, the decimal digits to show.
    fn numeric(&mut self, mantissa: i128, scale: u32) {
        const BASE: u128 = 10_000;
        // Group the fraction by four digits. `shortest` keeps a quantity's scale at 12 or less, a Decimal has 96 bits:
        // three more digits fit either.
        let missing = (4 - scale % 4) % 4;
        let mut rest = mantissa.unsigned_abs() * 10_u128.pow(missing);
        let fraction_groups = i16::try_from((scale + missing) / 4).unwrap_or(0);
        let (mut groups, mut count) = ([0_u16; 12], 0_usize);
        while rest > 0 && count < groups.len() {
            groups[count] = (rest % BASE) as u16;
            rest /= BASE;
            count += 1;
        }
        let digits = i16::try_from(count).unwrap_or(0);
        let sign: u16 = if mantissa < 0 { 0x4000 } else { 0 };
        let length = 8 + 2 * i32::from(digits);
        self.0.extend_from_slice(&length.to_be_bytes());
        for part in [digits.cast_unsigned(), (digits - fraction_groups - 1).cast_unsigned(), sign, scale as u16] {
            self.0.extend_from_slice(&part.to_be_bytes());
        }
        for group in groups[..count].iter().rev() {
            self.0.extend_from_slice(&group.to_be_bytes());
        }
    }
}

/// The same number without trailing zeros behind the decimal point.
fn shortest(mut mantissa: i128, mut scale: u32) -> (i128, u32) {
    while scale > 0 && mantissa % 10 == 0 {
        mantissa /= 10;
        scale -= 1;
    }
    (mantissa, scale)
}
