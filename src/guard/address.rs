//! Which addresses a user's URL may reach: the public unicast Internet, nothing else.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 networks that are not the public Internet (the IANA special-purpose registry,
/// multicast, and the address under which a cloud serves its machines' secrets).
const REFUSED_V4: [(Ipv4Net, &str); 17] = [
    (v4([0, 0, 0, 0], 8), "this network"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "carrier-grade NAT"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([168, 63, 129, 16], 32), "a cloud's own services"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "protocol assignments"),
    (v4([192, 0, 2, 0], 24), "documentation"),
    (v4([192, 88, 99, 0], 24), "6to4 relay"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([198, 18, 0, 0], 15), "benchmarking"),
    (v4([198, 51, 100, 0], 24), "documentation"),
    (v4([203, 0, 113, 0], 24), "documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255, 255, 255, 255], 32), "broadcast"),
    (v4([240, 0, 0, 0], 4), "reserved"),
];

/// Named only so that a refusal can tell them apart; all but the last four lie outside of
/// `2000::/3` and would be refused as "not global unicast" anyway.
const REFUSED_V6: [(Ipv6Net, &str); 14] = [
    (v6([0; 8], 96), "IPv4-compatible or unspecified"),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "NAT64"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
];

const GLOBAL_UNICAST_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

const fn v4(bytes: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix)
}

/// Why `address` is out of reach, or `None` if it may be reached.
///
/// `allow` is the only exception. An IPv4 address in IPv6 clothes is taken for what it is.
pub(super) fn refusal(address: IpAddr, allow: &[IpNet]) -> Option<&'static str> {
    let address = address.to_canonical();
    if allow.iter().any(|net| net.contains(&address)) {
        return None;
    }
    match address {
        IpAddr::V4(a) => REFUSED_V4.iter().find(|(net, _)| net.contains(&a)).map(|(_, why)| *why),
        IpAddr::V6(a) => REFUSED_V6
            .iter()
            .find(|(net, _)| net.contains(&a))
            .map(|(_, why)| *why)
            .or((!GLOBAL_UNICAST_V6.contains(&a)).then_some("not global unicast")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each refused network with its edges, and the public neighbours just outside of it.
    const REFUSED: [&str; 67] = [
        "0.0.0.0",
        "0.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "168.63.129.16",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.0",
        "192.0.0.255",
        "192.0.2.0",
        "192.0.2.255",
        "192.88.99.0",
        "192.88.99.255",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.0",
        "198.51.100.255",
        "203.0.113.0",
        "203.0.113.255",
        "224.0.0.0",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.254",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::ffff:ffff",
        "64:ff9b:1::1",
        "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
        "64:ff9b:2::1",
        "100::",
        "100::ffff:ffff:ffff:ffff",
        "1fff:ffff::1",
        "2001::",
        "2001:0:ffff:ffff::1",
        "2001:2::1",
        "2001:20::1",
        "2001:1ff:ffff::1",
        "2001:db8::1",
        "2001:db8:ffff:ffff::1",
        "2002::1",
        "2002:7f00:1::1",
        "2002:ffff::1",
        "3fff::1",
        "3fff:fff:ffff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fdff:ffff::1",
        "fe80::1",
        "ff02::1",
    ];
    const REACHABLE: [&str; 38] = [
        "1.0.0.0",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.254",
        "100.63.255.255",
        "100.128.0.0",
        "100.128.0.1",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.1.255",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "2000::1",
        "2000:ffff::1",
        "2001:200::1",
        "2001:db7:ffff::1",
        "2001:db9::1",
        "2001:ffff::1",
        "2003::1",
        "3fff:1000::1",
    ];

    #[test]
    fn special_networks_are_refused_up_to_their_edges_and_neighbours_are_not() {
        for text in REFUSED {
            assert!(refusal(text.parse().unwrap(), &[]).is_some(), "{text} must be refused");
        }
        for text in REACHABLE {
            assert_eq!(refusal(text.parse().unwrap(), &[]), None, "{text} must be reachable");
        }
    }

    #[test]
    fn the_allow_list_opens_its_networks_and_nothing_beside_them() {
        let allow = ["10.1.0.0/16".parse().unwrap(), "fd00:1::/32".parse().unwrap()];
        for (text, open) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("fd00:1::5", true),
            ("10.2.0.1", false),
            ("10.0.255.255", false),
            ("fd00:2::5", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(refusal(text.parse().unwrap(), &allow).is_none(), open, "{text}");
        }
    }
}
