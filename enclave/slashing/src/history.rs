//! Whether anything is known about what a key signed before it came here.

use casemate_protocol::Refusal;

use crate::Watermarks;

/// A key's past. The difference between «nothing was signed» and «nobody knows» decides whether it may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlashingHistory {
    /// Nobody said what this key has signed: it signs nothing.
    Missing,
    /// Known from an import, from our own signatures, or waived expressly.
    Known(Watermarks),
}

impl SlashingHistory {
    /// The watermarks, or the refusal of a key without history.
    pub fn watermarks(self) -> Result<Watermarks, Refusal> {
        match self {
            Self::Missing => Err(Refusal::NoHistory),
            Self::Known(watermarks) => Ok(watermarks),
        }
    }

    /// This history with another one added.
    #[must_use]
    pub fn with(self, more: Watermarks) -> Self {
        match self {
            Self::Missing => Self::Known(more),
            Self::Known(known) => Self::Known(known.merge(more)),
        }
    }
}
