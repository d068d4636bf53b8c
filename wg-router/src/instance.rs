//! Owns what an instance is called: its id inside the process, and the name its link and its control socket carry.

use std::fmt;
use std::str::FromStr;

/// Names an instance inside one process. Never used twice, so that a late message about a stopped instance cannot be
/// taken for one about its successor of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(u64);

/// A name that Linux accepts for a link and that is also safe as a file name: the control socket is `NAME.sock`.
///
/// ```
/// # use wg_router::InstanceName;
/// assert!("wg0".parse::<InstanceName>().is_ok());
/// assert!("../wg0".parse::<InstanceName>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(String);

/// Why a text cannot name an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceNameError {
    /// Nothing at all.
    #[error("an interface name has at least one character")]
    Empty,
    /// More bytes than the kernel stores.
    #[error("interface name `{name}` has {len} bytes; Linux allows at most {max}", max = InstanceName::MAX_LEN)]
    TooLong {
        /// The name.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character that the kernel refuses, or that would leave the directory of the control sockets.
    #[error(
        "interface name `{name}` contains `{character}`; slashes, colons, spaces and control characters cannot be used"
    )]
    Character {
        /// The name.
        name: String,
        /// The first such character, escaped for printing.
        character: String,
    },
    /// `.` and `..` are directories.
    #[error("`{0}` is a directory, not an interface name")]
    Directory(String),
}

/// One WireGuard instance: one key on one port with one TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    id: InstanceId,
    name: InstanceName,
}

impl InstanceId {
    pub(crate) const fn first() -> Self {
        InstanceId(0)
    }

    pub(crate) const fn next(self) -> Self {
        InstanceId(self.0 + 1)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "#{}", self.0)
    }
}

impl InstanceName {
    /// Longest name in bytes: `IFNAMSIZ` without the terminating zero.
    pub const MAX_LEN: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceName {
    type Err = InstanceNameError;

    fn from_str(name: &str) -> Result<Self, InstanceNameError> {
        if name.is_empty() {
            return Err(InstanceNameError::Empty);
        }
        if name == "." || name == ".." {
            return Err(InstanceNameError::Directory(name.to_owned()));
        }
        if let Some(wrong) = name.chars().find(|&c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control()) {
            let character = wrong.escape_default().to_string();
            return Err(InstanceNameError::Character { name: name.escape_default().to_string(), character });
        }
        if name.len() > InstanceName::MAX_LEN {
            return Err(InstanceNameError::TooLong { name: name.to_owned(), len: name.len() });
        }
        Ok(InstanceName(name.to_owned()))
    }
}

impl AsRef<str> for InstanceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Instance {
    pub(crate) fn new(id: InstanceId, name: InstanceName) -> Self {
        Instance { id, name }
    }

    /// The instance's id inside this process.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// The name of its link and of its control socket.
    pub fn name(&self) -> &InstanceName {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_linux_takes_are_names_and_others_are_refused_with_their_cause() {
        for good in ["wg0", "a", "wg-home.2", "x_=+-", "123456789012345", "...", "\u{e9}t\u{e9}"] {
            assert_eq!(good.parse::<InstanceName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        let refusal = |name: &str| name.parse::<InstanceName>().expect_err(name);
        assert_eq!(refusal(""), InstanceNameError::Empty);
        assert_eq!(refusal(".."), InstanceNameError::Directory("..".into()));
        assert!(matches!(refusal("1234567890123456"), InstanceNameError::TooLong { len: 16, .. }));
        // Counted in bytes, as the kernel does.
        assert!(matches!(refusal(&"\u{e9}".repeat(8)), InstanceNameError::TooLong { len: 16, .. }));
        for bad in ["../x", "a/b", "a:1", "a b", "a\tb", "a\nb", "a\0b", "a\u{a0}b"] {
            assert!(matches!(refusal(bad), InstanceNameError::Character { .. }), "{bad:?}");
        }
    }

    #[test]
    fn a_refusal_is_one_printable_line() {
        let refusal = "wg\x1b[31m\n".parse::<InstanceName>().expect_err("control characters");
        assert!(refusal.to_string().chars().all(|c| !c.is_control()), "{refusal}");
    }
}
