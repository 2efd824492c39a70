//! Addresses that no instance of a service may have, whoever names them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Says why an address may not be that of an instance; none if it may.
///
/// Consul and its checks connect to what is registered, from other machines than the pod's: an address that means another
/// host to each machine, or none, or where a cloud tells a machine its own secrets, is never right.
#[must_use]
pub fn forbidden(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    if let IpAddr::V6(v6) = address
        && let Some(why) = behind_nat64(v6).into_iter().flatten().find_map(|v4| forbidden(IpAddr::V4(v4)))
    {
        return Some(why);
    }
    if is_clouds(address) {
        return Some("is the address of a cloud's metadata service: Lictor never registers it");
    }
    if is_nobodys(address) {
        return Some("is a loopback, link-local, multicast, broadcast or unspecified address: others cannot reach it");
    }
    None
}

/// The addresses that a NAT64 may lead to, one for each form that RFC 6052 knows. With the well-known prefix, `64:ff9b::/96`,
/// there is one form. Of the prefix for networks of one's own, `64:ff9b:1::/48` (RFC 8215), nobody can tell which form its
/// network uses. One form has zeros where another one has an address, so they say "unspecified" only where all are zeros.
fn behind_nat64(address: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let o = address.octets();
    let v4 = |a: usize, b: usize, c: usize, d: usize| Some(Ipv4Addr::new(o[a], o[b], o[c], o[d]));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => [v4(12, 13, 14, 15), None, None, None],
        [0x64, 0xff9b, 1, ..] => {
            let all = [v4(6, 7, 9, 10), v4(7, 9, 10, 11), v4(9, 10, 11, 12), v4(12, 13, 14, 15)];
            let told = all.map(|v4| v4.filter(|v4| !v4.is_unspecified()));
            if told == [None; 4] { all } else { told }
        }
        _ => [None; 4],
    }
}

/// Says whether a cloud tells machines their secrets there. Amazon keeps `fd00:ec2::/32` for that: the metadata, the
/// credentials of pods, DNS and time.
fn is_clouds(address: IpAddr) -> bool {
    let is_amazons = matches!(address, IpAddr::V6(v6) if v6.segments()[..2] == [0xfd00, 0xec2]);
    is_amazons || METADATA.contains(&address)
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

/// The other addresses at which clouds tell a machine its secrets, besides those that are link-local, such as
/// 169.254.169.254: Google's, Oracle's, Scaleway's, Akamai's and Alibaba's by IPv6; Alibaba's, Azure's wire server and
/// Oracle's by IPv4.
const METADATA: [IpAddr; 8] = [
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200)),
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
            "fd00:ec2::23",
            "fd00:ec2:0:1::7",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "fd00:a9fe:a9fe::1",
            "fd00:100::100:200",
            "64:ff9b::169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::224.0.0.1",
            "64:ff9b::100.100.100.200",
            "64:ff9b::",
            // In each of the forms that a network may have chosen.
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:2:3:4:127.0.0.1",
            "64:ff9b:1:a9fe:a9:fe00::7",
            "64:ff9b:1:64:64:64c8::7",
            "64:ff9b:1:2:7f:0:100:7",
            "64:ff9b:1::",
        ];
        for address in forbidden_ones {
            assert!(forbidden(address.parse().unwrap()).is_some(), "{address}");
        }
        let others = [
            "10.0.0.1",
            "192.168.1.1",
            "203.0.113.7",
            "::ffff:10.0.0.1",
            "2001:db8::7",
            "fd00::7",
            "fd00:ec3::23",
            "fd00:42::43",
            "64:ff9b::203.0.113.7",
            "64:ff9b:1::203.0.113.7",
            "64:ff9b:1:cb00:71:700::",
            "64:ff9b:1:cb00:71:700::1",
            "64:ff9b:1:2:3:4:203.0.113.7",
            "64:ff9b:2::127.0.0.1",
        ];
        for address in others {
            assert_eq!(forbidden(address.parse().unwrap()), None, "{address}");
        }
    }
}
