//! Where a room listens or connects: `vsock:CID:PORT`, `unix:PATH`, `hybrid:PATH:PORT`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A transport address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The Nitro hypervisor's socket.
    Vsock {
        /// Context id: 3 is the parent, 16 and above are enclaves.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A Unix socket: an enclave process on this machine.
    Unix(PathBuf),
    /// The Unix form of vsock that vhost-device-vsock and Firecracker use: `CONNECT PORT\n`, then `OK …\n`.
    Hybrid {
        /// The device's socket.
        path: PathBuf,
        /// Port inside the guest.
        port: u32,
    },
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no transport address; write vsock:CID:PORT, unix:PATH or hybrid:PATH:PORT")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        let (scheme, rest) = text.split_once(':').ok_or_else(error)?;
        match scheme {
            "vsock" => {
                let (cid, port) = rest.split_once(':').ok_or_else(error)?;
                Ok(Self::Vsock { cid: cid.parse().map_err(|_| error())?, port: port.parse().map_err(|_| error())? })
            }
            "unix" if !rest.is_empty() => Ok(Self::Unix(rest.into())),
            "hybrid" => {
                let (path, port) = rest.rsplit_once(':').ok_or_else(error)?;
                if path.is_empty() {
                    return Err(error());
                }
                Ok(Self::Hybrid { path: path.into(), port: port.parse().map_err(|_| error())? })
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Hybrid { path, port } => write!(f, "hybrid:{}:{port}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_nonsense_is_refused() {
        for text in ["vsock:16:5005", "unix:/run/casemate.sock", "hybrid:/run/vm.vsock:5005", "hybrid:/a:b:1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["", "vsock", "vsock:16", "vsock:-1:5", "vsock:4294967296:1", "unix:", "hybrid:/x", "hybrid::1", "tcp:1:2"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
