//! AWS credentials of the parent, for the enclave to use. It asks again before they end.

use anyhow::{Context, Result};

#[cfg(feature = "imds")]
use super::imds::Imds;
use super::{CredentialSource, Credentials};

/// Where credentials come from.
pub enum Source {
    /// The instance's role, from the metadata service (IMDSv2).
    #[cfg(feature = "imds")]
    Imds(Box<Imds>),
    /// Fixed ones.
    Fixed(Credentials),
}

impl Source {
    /// The instance's role. `endpoint` is for tests; there is one address on every instance.
    #[cfg(feature = "imds")]
    pub fn imds(endpoint: Option<&str>) -> Result<Self> {
        Ok(Self::Imds(Box::new(Imds::new(endpoint)?)))
    }

    /// The development stack has no instance, and is built without AWS's client for it.
    #[cfg(not(feature = "imds"))]
    pub fn imds(_: Option<&str>) -> Result<Self> {
        anyhow::bail!(
            "this program was built without the instance's credentials: take --credentials environment, or build \
             casemate-proxy with its feature `imds`"
        )
    }

    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`: for machines that are no instance.
    pub fn environment() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        Ok(Self::Fixed(Credentials {
            access_key: variable("AWS_ACCESS_KEY_ID")?,
            secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
            session_token: variable("AWS_SESSION_TOKEN").ok(),
            expires: None,
        }))
    }
}

impl CredentialSource for Source {
    async fn credentials(&self) -> Result<Credentials> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            #[cfg(feature = "imds")]
            Self::Imds(imds) => imds.credentials().await,
        }
    }
}
