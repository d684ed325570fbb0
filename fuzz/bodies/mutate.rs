// Drives the body of a fuzz target without a fuzzer: seeds that are mutated and spliced, and plain noise.

/// A small generator with a fixed seed (xorshift), so that a failure comes back.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

/// Runs `body` on `rounds` inputs. A panic names the input.
pub fn drive(seed: u64, rounds: u32, seeds: &[&[u8]], body: impl Fn(&[u8])) {
    let mut random = Random(seed);
    for _ in 0..rounds {
        let input = draw(&mut random, seeds);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&input)));
        assert!(outcome.is_ok(), "failed for {:?}", String::from_utf8_lossy(&input));
    }
}

fn draw(random: &mut Random, seeds: &[&[u8]]) -> Vec<u8> {
    if random.below(8) == 0 {
        let length = random.below(200);
        return (0..length).map(|_| u8::try_from(random.below(256)).unwrap_or(0)).collect();
    }
    let mut input = seeds[random.below(seeds.len())].to_vec();
    for _ in 0..=random.below(4) {
        let (at, other) = (random.below(input.len() + 1), seeds[random.below(seeds.len())]);
        match random.below(5) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 => input.truncate(at),
            2 => input.insert(at, b"+-*/%^()<>=!&|?:,.'\"0199ax_ {}[]"[random.below(32)]),
            3 => drop(input.splice(at.min(input.len()).., other[random.below(other.len())..].iter().copied())),
            _ => {
                let end = (at + random.below(8)).min(input.len());
                let piece: Vec<u8> = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, piece.repeat(1 + random.below(3)));
            }
        }
    }
    input
}
