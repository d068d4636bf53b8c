//! Owns what the daemon may do after its start: configure networks, bind low ports, schedule its threads, and nothing
//! else of what root may. It stays the user it was, so that it can remove its socket.
//!
//! The order matters: capabilities belong to threads, so this runs before the first thread is started; the bounding set
//! can only be lowered while `CAP_SETPCAP` is still effective, so it goes first.

use std::io;

use rustix::process::DumpableBehavior;
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// What is kept: `CAP_NET_ADMIN` for TUN devices, marks and large buffers, `CAP_NET_BIND_SERVICE` for ports below 1024,
/// `CAP_SYS_NICE` for workers that run before other threads while they have work to do.
const KEPT: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE).union(CapabilitySet::SYS_NICE);

/// Gives up for good every privilege that is not needed. Call it before any thread is started.
///
/// Works for any user: who has less keeps what they have of these, and the log says what will not work.
///
/// # Errors
/// If the kernel refuses to lower the capabilities, which it does not for a process that may change its own.
pub fn drop_unneeded() -> io::Result<()> {
    let before = thread::capabilities(None)?;
    clear_bounding_set();
    // Kernels before 4.3 have no ambient set: then there is nothing to clear.
    if let Err(error) = thread::clear_ambient_capability_set() {
        tracing::debug!("cannot clear the ambient capabilities: {error}");
    }
    let kept = before.permitted & KEPT;
    thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    thread::set_no_new_privs(true)?;
    hide_memory()?;
    report_missing(kept);
    tracing::debug!(kept = %names(kept), "privileges dropped");
    Ok(())
}

/// Keeps other processes, and a core file, from the keys in memory.
pub fn hide_memory() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Lowers what programs started from here could ever get. Needs `CAP_SETPCAP`; without it, `no_new_privs` is what holds.
fn clear_bounding_set() {
    let mut last = None;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if KEPT.contains(capability) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no capability of this or a higher number.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        tracing::debug!("cannot lower the capability bounding set: {error}");
    }
}

fn report_missing(kept: CapabilitySet) {
    if !kept.contains(CapabilitySet::NET_ADMIN) {
        tracing::warn!(
            "CAP_NET_ADMIN is missing: creating a TUN device, changing its MTU and setting a fwmark will be refused; \
             run as root, or grant it with `setcap cap_net_admin,cap_net_bind_service+ep` on the program"
        );
    } else if !kept.contains(CapabilitySet::NET_BIND_SERVICE) {
        tracing::info!("CAP_NET_BIND_SERVICE is missing: listen ports below 1024 may be refused");
    }
}

fn names(set: CapabilitySet) -> String {
    let names: Vec<&str> = [
        (CapabilitySet::NET_ADMIN, "net_admin"),
        (CapabilitySet::NET_BIND_SERVICE, "net_bind_service"),
        (CapabilitySet::SYS_NICE, "sys_nice"),
    ]
    .into_iter()
    .filter(|&(capability, _)| set.contains(capability))
    .map(|(_, name)| name)
    .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}
