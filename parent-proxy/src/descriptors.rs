//! File descriptors: raised to the hard limit at the start, and shared out, so that no crowd of clients takes those that the enclave
//! needs.

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::connections::EVICTING;
use crate::egress;
use crate::settings::Settings;

/// Standard streams, runtime, signals, listeners, log, certificates, blobs and records that are being written, one to spare for each.
const OWN: usize = 64;
/// Connections to an enclave beyond those that carry requests: one for a command, one on which it is observed, one that is being made
/// anew.
const MORE_FOR_AN_ENCLAVE: usize = 3;
/// Clients of the listener of administration at once.
pub const ADMIN_CLIENTS: usize = 64;
/// With fewer clients than this nobody is served well.
const MIN_CLIENTS: usize = 16;

/// Raises the soft limit to the hard one; what may be open from now on.
pub fn raise() -> usize {
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, wanted) {
            warn!(%error, soft = now.current, hard = now.maximum, "the limit of descriptors could not be raised");
        }
    }
    getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Descriptors that clients do not get.
fn reserved(settings: &Settings) -> usize {
    let lanes = settings.enclave_connections.get().saturating_add(MORE_FOR_AN_ENCLAVE);
    let enclaves = settings.enclave.len().saturating_mul(lanes);
    let egress = settings.egress.as_ref().map_or(0, |_| egress::descriptors(&settings.enclave_cids()));
    let admin = settings.admin_listen.map_or(0, |_| ADMIN_CLIENTS.saturating_add(EVICTING));
    [OWN, EVICTING, enclaves, egress, admin].into_iter().fold(0, usize::saturating_add)
}

/// How many clients may be connected at once, of those that the settings allow.
pub fn clients(settings: &Settings, limit: usize) -> Result<usize> {
    let reserved = reserved(settings);
    let asked = settings.max_connections.get();
    let clients = asked.min(limit.saturating_sub(reserved));
    if clients < MIN_CLIENTS.min(asked) {
        bail!(
            "{limit} descriptors may be open, and {reserved} of them are for the enclave and the proxy itself: {clients} are left for \
             clients. Raise the hard limit (LimitNOFILE= of the unit, ulimit -Hn) to at least {}",
            reserved.saturating_add(asked)
        );
    }
    if clients < asked {
        warn!(
            descriptors = limit,
            reserved, clients, asked, "fewer clients than --max-connections: raise the hard limit of descriptors"
        );
    } else {
        info!(descriptors = limit, reserved, clients, "descriptors");
    }
    Ok(clients)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings(words: &[&str]) -> Settings {
        let all = std::iter::once("casemate-proxy").chain(words.iter().copied()).map(Into::into);
        Settings::from_arguments(all).unwrap()
    }

    #[test]
    fn clients_never_get_the_descriptors_that_are_the_enclaves() {
        let plain = settings(&[]);
        assert_eq!(clients(&plain, 1_048_576).unwrap(), 2048);
        let at_the_limit = clients(&plain, 1024).unwrap();
        assert!((800..1024).contains(&at_the_limit), "{at_the_limit}");
        let egress = settings(&["--egress", "vsock:3:7000", "--enclave", "vsock:16:1,vsock:17:1"]);
        assert!(clients(&egress, 1024).unwrap() < at_the_limit);
        let error = clients(&plain, 100).unwrap_err().to_string();
        assert!(error.contains("100 descriptors") && error.contains("LimitNOFILE"), "{error}");
    }
}
