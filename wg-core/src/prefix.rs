//! Owns the address prefix, masked at construction, so that no malformed one exists. Knows nothing of who owns it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// An IPv4 or IPv6 address prefix whose host bits are zero.
///
/// Ordered by family (IPv4 first), address, length. An IPv4-mapped IPv6 address is an IPv6 address.
///
/// ```
/// let prefix: wg_core::Prefix = "10.1.2.3/8".parse()?;
/// assert_eq!(prefix.to_string(), "10.0.0.0/8");
/// # Ok::<(), wg_core::prefix::PrefixError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

/// Why an address and a length, or a text, are not a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The text is not an address, a slash and a decimal length.
    #[error("a prefix is an IPv4 or IPv6 address, a slash and a length")]
    Malformed,
    /// The length exceeds the bits of the address.
    #[error("the prefix length exceeds {limit}")]
    TooLong {
        /// The bits of an address of this family.
        limit: u8,
    },
}

impl Prefix {
    /// The prefix of `len` bits that contains `addr`.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        match IpNet::new(addr, len) {
            Ok(net) => Ok(Prefix(net.trunc())),
            Err(_) => Err(PrefixError::TooLong { limit: address_bits(addr) }),
        }
    }

    /// The prefix that contains `addr` alone.
    pub fn host(addr: IpAddr) -> Self {
        Prefix(IpNet::from(addr))
    }

    /// The first address of the prefix; its host bits are zero.
    pub fn addr(&self) -> IpAddr {
        self.0.addr()
    }

    /// The number of leading bits that all addresses of the prefix share.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether `addr` is of the same family and within the prefix.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(&addr)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Reads an address, a slash and a decimal length; the address may have host bits, which are cleared.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (addr, len) = text.split_once('/').ok_or(PrefixError::Malformed)?;
        let addr: IpAddr = addr.parse().map_err(|_| PrefixError::Malformed)?;
        // `u8::from_str` would also take a plus sign.
        if len.is_empty() || !len.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(PrefixError::Malformed);
        }
        let len = len.parse().map_err(|_| PrefixError::TooLong { limit: address_bits(addr) })?;
        Prefix::new(addr, len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Prefix({})", self.0)
    }
}

fn address_bits(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().expect("a prefix")
    }

    #[test]
    fn host_bits_are_cleared_by_both_ways_of_construction() {
        assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(prefix("2001:db8::1/32").to_string(), "2001:db8::/32");
        assert_eq!(prefix("255.255.255.255/0").to_string(), "0.0.0.0/0");
        assert_eq!(Prefix::new("10.1.2.3".parse().expect("an address"), 31), Ok(prefix("10.1.2.2/31")));
        assert_eq!(prefix("10.1.2.3/8"), prefix("10.255.0.0/8"));
        assert_eq!(prefix("10.1.2.3/8").addr(), "10.0.0.0".parse::<IpAddr>().expect("an address"));
        assert_eq!(prefix("10.1.2.3/8").prefix_len(), 8);
    }

    #[test]
    fn a_host_prefix_has_full_length_and_keeps_every_bit() {
        let addr: IpAddr = "2001:db8::1".parse().expect("an address");
        assert_eq!(Prefix::host(addr).to_string(), "2001:db8::1/128");
        assert_eq!(Prefix::host("1.2.3.4".parse().expect("an address")), prefix("1.2.3.4/32"));
    }

    #[test]
    fn text_that_is_not_an_address_a_slash_and_a_length_is_refused() {
        for text in
            ["", "/", "10.0.0.0", "10.0.0.0/", "/8", "10.0.0/8", "10.0.0.0/+8", "10.0.0.0/-1", "10.0.0.0/8 ", " ::/0"]
        {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Malformed), "{text:?}");
        }
        for text in
            ["10.0.0.0/8/8", "fe80::1%eth0/64", "010.0.0.0/8", "10.0.0.0/255.0.0.0", "::g/8", "10.0.0.0/\u{664}"]
        {
            assert_eq!(text.parse::<Prefix>(), Err(PrefixError::Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_length_beyond_the_address_is_refused_and_the_full_length_is_not() {
        assert_eq!("10.0.0.0/33".parse::<Prefix>(), Err(PrefixError::TooLong { limit: 32 }));
        assert_eq!("::/129".parse::<Prefix>(), Err(PrefixError::TooLong { limit: 128 }));
        assert_eq!("::/99999999999".parse::<Prefix>(), Err(PrefixError::TooLong { limit: 128 }));
        assert_eq!(Prefix::new("10.0.0.0".parse().expect("an address"), 33), Err(PrefixError::TooLong { limit: 32 }));
        assert_eq!(prefix("10.0.0.0/32").prefix_len(), 32);
        assert_eq!(prefix("::/128").prefix_len(), 128);
    }

    #[test]
    fn a_prefix_contains_its_first_and_last_address_and_neither_neighbour_nor_the_other_family() {
        let inside = |addr: &str| prefix("10.1.2.0/23").contains(addr.parse().expect("an address"));
        assert!(inside("10.1.2.0") && inside("10.1.3.255"));
        assert!(!inside("10.1.1.255") && !inside("10.1.4.0") && !inside("::ffff:10.1.2.0"));
        assert!(!prefix("::/0").contains("10.1.2.0".parse().expect("an address")));
    }

    #[test]
    fn the_order_is_family_then_address_then_length() {
        let sorted = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/9", "10.1.0.0/16", "255.0.0.0/8", "::/0", "::/1", "1::/16"];
        let prefixes: Vec<Prefix> = sorted.iter().map(|text| prefix(text)).collect();
        assert!(prefixes.is_sorted_by(|left, right| left < right));
    }
}
