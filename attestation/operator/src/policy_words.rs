//! What a measured configuration allows, in words.

use casemate_protocol::configuration::{Configuration, FenceConfig, Operators, Policy, RecordStore};
use casemate_protocol::{ExecutionAddress, Root};

use crate::report;
use crate::util::{plain, plural};

/// Lines with their names.
pub fn words(configuration: &Configuration) -> Vec<(&'static str, String)> {
    let Configuration { operators, policy, fence, kms_key_arn, .. } = configuration;
    // All of it: a policy without words would be one that no operator reads.
    let Policy {
        proof_of_validation,
        voluntary_exits,
        withdrawal_addresses,
        fee_recipient,
        graffiti,
        block_proofs,
        key_manager_import,
        key_manager_delete,
        builder_bids,
        window,
    } = policy;
    let mut lines = operators_of(operators);
    lines.push(("seal under", format!("the KMS key {}", plain(kms_key_arn))));
    lines.push(("fence", fence_of(fence)));
    lines.push(("exits", exits(*voluntary_exits)));
    lines.push(("deposits", deposits(withdrawal_addresses)));
    lines.push(("fees", fees(fee_recipient.as_ref(), *block_proofs)));
    lines.push(("graffiti", graffiti_of(graffiti.as_ref())));
    lines.push(("blocks", blocks(*block_proofs)));
    lines.push(("keys in", keys_in(*key_manager_import)));
    lines.push(("keys out", keys_out(*key_manager_delete)));
    lines.push(("proofs", proofs(*proof_of_validation)));
    lines.push(("bids", bids(*builder_bids)));
    lines.extend(report::window(*window).map(|line| ("window", line)));
    lines
}

fn operators_of(Operators { threshold, keys }: &Operators) -> Vec<(&'static str, String)> {
    if keys.is_empty() {
        return vec![("operators", "none: no one can change its keys".to_owned())];
    }
    let first = ("operators", format!("a command takes {threshold} of {}:", plural(keys.len(), "operator")));
    std::iter::once(first).chain(keys.iter().map(|key| ("", key.to_string()))).collect()
}

fn fence_of(fence: &FenceConfig) -> String {
    match fence {
        FenceConfig::Solo => {
            "solo: silence after each start covers what was signed before; CLONES ARE NOT STOPPED".to_owned()
        }
        FenceConfig::Record(RecordStore::File) => "a record in a file: as good as the disk that keeps it".to_owned(),
        FenceConfig::Record(RecordStore::Etcd { endpoints, cluster, .. }) => {
            let hosts: Vec<String> = endpoints.iter().map(|one| format!("{}:{}", plain(&one.host), one.port)).collect();
            format!("a record in the etcd cluster {cluster} at {}", hosts.join(", "))
        }
        FenceConfig::Record(RecordStore::Dynamodb { table }) => format!("a record in the table {table}"),
    }
}

fn bids(signed: bool) -> String {
    if signed {
        "BIDS OF BUILDERS ARE SIGNED for anyone who can ask for signatures; a bid commits a balance".to_owned()
    } else {
        "no bid of a builder is signed".to_owned()
    }
}

fn exits(for_anyone: bool) -> String {
    if for_anyone {
        "VOLUNTARY EXITS ARE SIGNED FOR ANYONE who can ask for signatures; an exit cannot be taken back".to_owned()
    } else {
        "voluntary exits are signed by operators' order alone".to_owned()
    }
}

fn deposits(to: &[ExecutionAddress]) -> String {
    if to.is_empty() {
        return "no deposit is signed".to_owned();
    }
    let to: Vec<String> = to.iter().map(ToString::to_string).collect();
    format!("deposits are signed where they withdraw to {}", to.join(", "))
}

fn fees(to: Option<&ExecutionAddress>, proved: bool) -> String {
    let Some(to) = to else {
        return "THE CLIENT SAYS where fees go, but for keys for which operators have ordered an address".to_owned();
    };
    let blocks =
        if proved { "in blocks too" } else { "but in blocks nobody looks, because blocks come without proofs" };
    format!("fees go to {to}, or where operators order it for a key: in registrations and preferences, {blocks}")
}

fn graffiti_of(graffiti: Option<&Root>) -> String {
    graffiti.map_or("the client says what blocks carry".to_owned(), |graffiti| format!("blocks carry {graffiti}"))
}

fn blocks(proved: bool) -> String {
    if proved {
        "blocks are signed only with a proof of the fee recipient or graffiti that the configuration names".to_owned()
    } else {
        "blocks are signed by their headers alone".to_owned()
    }
}

fn keys_in(from_parent: bool) -> String {
    if from_parent {
        "THE KEY MANAGER API IMPORTS KEYS without operators, and the parent sees them".to_owned()
    } else {
        "keys come in by operators' commands alone".to_owned()
    }
}

fn keys_out(by_parent: bool) -> String {
    if by_parent {
        "THE KEY MANAGER API DELETES KEYS without operators".to_owned()
    } else {
        "keys are deleted by operators' commands alone".to_owned()
    }
}

fn proofs(signed: bool) -> String {
    if signed { "proofs of validation are signed".to_owned() } else { "no proof of validation is signed".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(policy: &str) -> String {
        let operators = ["1", "2", "3"].map(|digit| format!("\"0x{}\"", digit.repeat(64))).join(", ");
        let toml = format!(
            "group = \"main\"\nnetwork = \"mainnet\"\nkms_key_arn = \"arn:aws:kms:eu-central-1:123456789012:key/1\"\n\
             [operators]\nthreshold = 2\nkeys = [{operators}]\n[fence]\nkind = \"solo\"\n[policy]\n{policy}"
        );
        let configuration = casemate_config::configuration(&toml, Root::ZERO).unwrap();
        words(&configuration).into_iter().map(|(name, words)| format!("{name}: {words}\n")).collect()
    }

    #[test]
    fn a_policy_is_told_in_words() {
        let address = format!("0x{}", "ab".repeat(20));
        let strict = told(&format!("fee_recipient = \"{address}\"\n"));
        for part in [
            "a command takes 2 of 3 operators",
            "CLONES ARE NOT STOPPED",
            "exits are signed by operators' order alone",
            "no deposit is signed",
            "in blocks nobody looks",
            "blocks are signed until they are 2 slots old",
        ] {
            assert!(strict.contains(part), "{part}: {strict}");
        }
        let loose = told(
            "fee_recipient = \"0xabababababababababababababababababababab\"\nvoluntary_exits = true\nkey_manager_import = true\nkey_manager_delete = true\n\
             proof_of_validation = true\nblock_proofs = true\nmax_block_age_slots = \"any\"\n",
        );
        for part in ["EXITS ARE SIGNED FOR ANYONE", "IMPORTS KEYS", "DELETES KEYS", "in blocks too", "ANY age"] {
            assert!(loose.contains(part), "{part}: {loose}");
        }
    }
}
