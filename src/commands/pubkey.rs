//! `wgd pubkey`: reads a private key from standard input and prints the public key that belongs to it.

use std::io::{self, Read};
use std::process::ExitCode;

use wg_core::PrivateKey;
use zeroize::Zeroizing;

/// Runs the command.
pub fn run() -> ExitCode {
    super::finish(convert(io::stdin().lock()))
}

fn convert(input: impl Read) -> Result<(), PubkeyError> {
    let key = read_key(input)?;
    super::print(format!("{}\n", key.public_key()).as_bytes()).map_err(PubkeyError::Print)
}

#[derive(Debug, thiserror::Error)]
enum PubkeyError {
    #[error("cannot read the private key from standard input: {0}")]
    Read(io::Error),
    #[error(
        "standard input does not hold a private key: expected 44 characters of base64 and nothing else, \
         as `wgd genkey` prints them"
    )]
    NotAKey,
    #[error("cannot print the public key: {0}")]
    Print(io::Error),
}

/// Reads a key that whitespace may surround.
fn read_key(input: impl Read) -> Result<PrivateKey, PubkeyError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN as usize));
    input.take(MAX_LEN).read_to_end(&mut bytes).map_err(PubkeyError::Read)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| PubkeyError::NotAKey)?;
    text.trim_ascii().parse().map_err(|_| PubkeyError::NotAKey)
}

/// More than a key and some blank lines; what is longer is something else.
const MAX_LEN: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748 6.1, Alice.
    const PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn the_public_key_is_the_one_of_the_rfc_with_and_without_a_line_end() {
        for input in [PRIVATE.to_owned(), format!("{PRIVATE}\n"), format!("  {PRIVATE}\r\n\n")] {
            assert_eq!(read_key(input.as_bytes()).expect("a key").public_key().to_string(), PUBLIC);
        }
    }

    #[test]
    fn anything_that_is_not_exactly_one_key_is_refused() {
        let two = format!("{PRIVATE}\n{PRIVATE}\n");
        for input in ["", "\n", &PRIVATE[1..], &PRIVATE[..43], &format!("{PRIVATE}A"), &two, &"A".repeat(5000)] {
            assert!(matches!(read_key(input.as_bytes()), Err(PubkeyError::NotAKey)), "{input:?}");
        }
        assert!(matches!(read_key(&b"\xff\xfe"[..]), Err(PubkeyError::NotAKey)));
    }
}
