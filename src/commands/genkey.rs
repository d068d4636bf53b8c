//! `wgd genkey`: prints a new private key in base64. The randomness is the kernel's.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use wg_core::PrivateKey;
use zeroize::Zeroizing;

/// Runs the command.
pub fn run() -> ExitCode {
    let outcome = random_bytes().and_then(|bytes| print_secret(&PrivateKey::from_bytes(*bytes).to_base64()));
    super::finish(outcome)
}

/// 32 bytes that nobody else knows.
pub(super) fn random_bytes() -> io::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| io::Error::other(format!("no randomness from the kernel: {error}")))?;
    Ok(bytes)
}

/// Prints a secret on a line of its own, and warns when it goes to a file that others may read.
pub(super) fn print_secret(secret: &str) -> io::Result<()> {
    if is_readable_by_others() {
        eprintln!("wgd: warning: everybody may read the file this key is written to; run `umask 077` first");
    }
    let line = Zeroizing::new(format!("{secret}\n"));
    super::print(line.as_bytes())
}

fn is_readable_by_others() -> bool {
    let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned() else { return false };
    File::from(stdout).metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o007 != 0)
}
