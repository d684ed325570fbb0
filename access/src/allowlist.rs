//! Source addresses that a key may be used from: addresses and CIDR blocks (api-keys.md, rule 9).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address or a block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

/// Text that is neither an address nor a CIDR block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an IP address or a CIDR block such as 198.51.100.0/24")]
pub struct NetworkError;

impl Network {
    /// Whether the address lies in the block. IPv4-mapped IPv6 addresses count as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                base.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) if !bits.starts_with('+') => {
                (address, Some(bits.parse::<u8>().map_err(|_| NetworkError)?))
            }
            Some(_) => return Err(NetworkError),
        };
        let given: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let base = given.to_canonical();
        let (given_max, max) = (if given.is_ipv4() { 32 } else { 128 }, if base.is_ipv4() { 32 } else { 128 });
        let bits = bits.unwrap_or(given_max);
        // A mapped block such as ::ffff:10.0.0.0/104 counts its bits from the IPv6 start.
        let bits = bits.checked_sub(given_max - max).filter(|bits| *bits <= max).ok_or(NetworkError)?;
        Ok(Self { base, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_contain_their_addresses() {
        for (network, address, inside) in [
            ("198.51.100.0/24", "198.51.100.9", true),
            ("198.51.100.0/24", "203.0.113.9", false),
            ("203.0.113.9", "203.0.113.9", true),
            ("203.0.113.9", "203.0.113.8", false),
            ("203.0.113.9", "::ffff:203.0.113.9", true),
            ("::ffff:203.0.113.9", "203.0.113.9", true),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("::/0", "2001:db8::1", true),
        ] {
            let parsed: Network = network.parse().expect("a network");
            assert_eq!(parsed.contains(address.parse().expect("an address")), inside, "{address} in {network}");
        }
        for wrong in ["", "example.com", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "10.0.0.0/+8", "10.0.0.0/-1"]
        {
            assert_eq!(wrong.parse::<Network>(), Err(NetworkError), "{wrong}");
        }
    }
}
