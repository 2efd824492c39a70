//! Addresses that no instance of a service may have, whoever names them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Says why an address may not be that of an instance; none if it may.
///
/// Consul and its checks connect to what is registered, from other machines than the pod's: an address that means another
/// host to each machine, or none, or where a cloud tells a machine its own secrets, is never right.
#[must_use]
pub fn forbidden(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    if METADATA.contains(&address) {
        return Some("is the address of a cloud's metadata service: Lictor never registers it");
    }
    if is_nobodys(address) {
        return Some("is a loopback, link-local, multicast, broadcast or unspecified address: others cannot reach it");
    }
    None
}

/// Says whether an address means another host to each who uses it, or none.
fn is_nobodys(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        // Addresses of IPv4 in the form that is no more are nobody's, either.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[..6] == [0; 6],
    };
    link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

/// The addresses at which clouds tell a machine its secrets, besides 169.254.169.254, which is link-local: Amazon's
/// and Google's by IPv6, Alibaba's, Azure's wire server, Oracle's.
const METADATA: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_nobody_and_of_clouds_are_forbidden() {
        let forbidden_ones = [
            "0.0.0.0",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "169.254.1.1",
            "224.0.0.1",
            "224.0.1.1",
            "239.255.255.250",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "ff0e::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "fd00:ec2::254",
            "fd20:ce::254",
        ];
        for address in forbidden_ones {
            assert!(forbidden(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in ["10.0.0.1", "192.168.1.1", "203.0.113.7", "::ffff:10.0.0.1", "2001:db8::7", "fd00::7"] {
            assert_eq!(forbidden(address.parse().unwrap()), None, "{address}");
        }
    }
}
