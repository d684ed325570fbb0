//! The client's address: the peer of the socket, or what trusted proxies say of it (api-keys.md, rule 9).

use std::net::{IpAddr, SocketAddr};

use access::Network;
use axum::extract::ConnectInfo;
use axum::http::request::Parts;

/// The address that a key's allowlist is held against; `None` when the transport has none.
#[must_use]
pub fn client(parts: &Parts, trusted: &[Network]) -> Option<IpAddr> {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>()?.0.ip().to_canonical();
    let forwarded = parts.headers.get_all("x-forwarded-for");
    let hops = forwarded.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    Some(behind_proxies(peer, &hops.map(str::trim).collect::<Vec<_>>(), trusted))
}

/// Walks from the peer towards the client for as long as the speaker is a trusted proxy.
fn behind_proxies(peer: IpAddr, hops: &[&str], trusted: &[Network]) -> IpAddr {
    let mut speaker = peer;
    for hop in hops.iter().rev() {
        if !trusted.iter().any(|network| network.contains(speaker)) {
            break;
        }
        match hop.parse::<IpAddr>() {
            Ok(address) => speaker = address.to_canonical(),
            Err(_) => break, // what a proxy could not name cannot be followed further
        }
    }
    speaker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<Network> = vec!["10.0.0.0/8".parse().expect("a network")];
        for (peer, hops, client) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
        ] {
            let found = behind_proxies(peer.parse().expect("an address"), hops, &trusted);
            assert_eq!(found.to_string(), client, "{peer} {hops:?}");
        }
    }
}
