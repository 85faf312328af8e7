//! How a subcommand ends, and what it says then.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for was done: a document was accepted, or shown where no more was asked for.
    Accepted,
    /// The document is not what was expected, or the enclave refused a command.
    Refused,
    /// There was nothing to judge: the input or the command line cannot be used.
    Unusable,
    /// The signer cannot be reached, or what became of a command is not known.
    NoAnswer,
    /// All that was asked for was done, and what came of it could not be written on this machine.
    NotWritten,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Exit {
    /// As the shell gets it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Refused => 1,
            Self::Unusable => 2,
            Self::NoAnswer => 3,
            Self::NotWritten => 4,
        }
    }

    /// For programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Unusable => "unusable",
            Self::NoAnswer => "no_answer",
            Self::NotWritten => "not_written",
        }
    }

    /// How a command ended that could not go on.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        if error.is::<Refused>() {
            Self::Refused
        } else if error.chain().any(<dyn std::error::Error>::is::<NoAnswer>) {
            Self::NoAnswer
        } else {
            Self::Unusable
        }
    }
}

/// The text for standard output, and how the command ended.
pub type Answer = (String, Exit);

/// The answer was no: by the document's verification or by the enclave.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// An error that says why the answer was no.
pub fn refused<T>(why: impl Into<String>) -> anyhow::Result<T> {
    Err(Refused(why.into()).into())
}

/// Unusable input, in several lines of which each is harmless on a terminal.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lines(pub String);

/// No one answered, or no one who could.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub String);
