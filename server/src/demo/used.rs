//! What each customer used, summed from the raw input.

use super::trace::Request;

/// What one customer used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Quantities, in the order of `client::sample::METRICS`.
    pub quantities: [u64; 3],
    /// Requests; each is one event of every metric.
    pub requests: u64,
}

/// Sums of each customer: request i belongs to customer i mod `customers`.
#[must_use]
pub fn by_customer(requests: &[Request], customers: usize) -> Vec<Used> {
    let mut sums = vec![Used::default(); customers];
    for (index, request) in requests.iter().enumerate() {
        let used = &mut sums[index % customers];
        used.quantities[0] += request.input_tokens;
        used.quantities[1] += request.output_tokens;
        used.quantities[2] += 1;
        used.requests += 1;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_i_belongs_to_customer_i_mod_n() {
        let request =
            |input_tokens| Request { timestamp: chrono::DateTime::UNIX_EPOCH, input_tokens, output_tokens: 1 };
        let sums = by_customer(&[request(1), request(20), request(300)], 2);
        assert_eq!(sums[0], Used { quantities: [301, 2, 2], requests: 2 });
        assert_eq!(sums[1], Used { quantities: [20, 1, 1], requests: 1 });
    }
}
