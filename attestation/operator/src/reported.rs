//! Outcomes of commands as the proxy passes them on. They count once a document has their digest.

use casemate_protocol::Root;
use casemate_protocol::command::Outcome;
use casemate_protocol::reported::ReportedOutcome;

use crate::util::sha256;

/// The outcome with this digest, which a document has; nothing where the proxy tells another one.
pub fn proved(reported: &ReportedOutcome, sha256_of_outcome: Root) -> Option<Outcome> {
    reported.outcome().ok().filter(|outcome| sha256(&outcome.encode()) == sha256_of_outcome)
}
