//! `wgd genpsk`: prints a new preshared key in base64.

use std::process::ExitCode;

use wg_core::PresharedKey;

use super::genkey::{print_secret, random_bytes};

/// Runs the command.
pub fn run() -> ExitCode {
    let outcome = random_bytes().and_then(|bytes| {
        // All zeros mean "no key" and come up never in practice.
        let key = PresharedKey::from_bytes(*bytes)
            .ok_or_else(|| std::io::Error::other("the kernel's randomness was all zeros; try again"))?;
        print_secret(&key.to_base64())
    });
    super::finish(outcome)
}
