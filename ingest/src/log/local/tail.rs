//! The newest records of a partition, in memory: readers that keep up take them from here.

use std::collections::VecDeque;

use bytes::Bytes;

/// Durable records only; the writer adds them after its sync.
pub(super) struct Tail {
    /// Offset that the next record gets.
    end: u64,
    records: VecDeque<Bytes>,
    bytes: usize,
    bytes_max: usize,
}

/// What a reader finds.
pub(super) enum Found {
    /// The next records.
    Records(Vec<Bytes>),
    /// They are not in memory any more.
    InFile,
    /// There are none yet.
    Nothing,
}

impl Tail {
    pub fn new(end: u64, bytes_max: usize) -> Self {
        Self { end, records: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds records that have become durable; the oldest go when there is no room.
    pub fn push(&mut self, records: impl IntoIterator<Item = Bytes>) {
        for record in records {
            self.end += 1;
            self.bytes += record.len();
            self.records.push_back(record);
        }
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// The records from `from` on, at most `max`.
    pub fn read(&self, from: u64, max: usize) -> Found {
        if from >= self.end {
            return Found::Nothing;
        }
        let first = self.end - self.records.len() as u64;
        match from.checked_sub(first) {
            Some(skip) => Found::Records(self.records.range(skip as usize..).take(max).cloned().collect()),
            None => Found::InFile,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_within_its_bound() {
        let mut tail = Tail::new(10, 10);
        assert!(matches!(tail.read(10, 5), Found::Nothing));
        tail.push(["aaaa", "bbbb", "cccc"].map(Bytes::from));
        assert_eq!(tail.end(), 13);
        assert!(matches!(tail.read(10, 5), Found::InFile));
        let Found::Records(records) = tail.read(11, 1) else { panic!() };
        assert_eq!(records, ["bbbb"]);
        let Found::Records(records) = tail.read(11, 9) else { panic!() };
        assert_eq!(records, ["bbbb", "cccc"]);
    }
}
