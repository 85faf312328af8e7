//! `casemate status --all`: every enclave of the group, each proved by a document of its own.
//!
//! How many enclaves there are is the proxies' word: one that is not named is not asked. What the table says of an enclave is proved.

use std::fmt::Write as _;

use anyhow::Result;
use casemate_protocol::{Bytes, Statement};
use serde_json::{Value, json};

use super::status::{self, Status};
use crate::args::{Connection, PinOptions};
use crate::exit::{Answer, Exit, Refused};
use crate::fetch::Proxy;
use crate::session::Session;
use crate::table::Table;
use crate::util::{plain, plural};

/// An enclave behind a proxy, and what it says; or why it says nothing that counts.
struct Asked {
    url: String,
    number: u32,
    told: Result<Box<Statement>>,
}

/// Shows them all.
pub fn run(options: Status) -> Result<Answer> {
    let Status { connection, peer, json, pins, .. } = options;
    let urls = std::iter::once(connection.url.clone()).chain(peer);
    let mut asked = Vec::new();
    for url in urls {
        ask(&Connection { url, ..connection.clone() }, &pins, &mut asked)?;
    }
    let faults = faults(&asked);
    let exit = exit(&asked, &faults);
    let text = if json { format!("{:#}\n", json_of(&asked, &faults)) } else { text_of(&asked, &faults) };
    Ok((text, exit))
}

/// Asks every enclave behind a proxy.
fn ask(connection: &Connection, pins: &PinOptions, asked: &mut Vec<Asked>) -> Result<()> {
    let url = connection.url.clone();
    // An error here is of the command line, but for a proxy that does not answer: that is a line of the table.
    let count = match Proxy::new(connection)?.enclaves() {
        Ok(count) => count,
        Err(error) => {
            asked.push(Asked { url, number: 0, told: Err(error) });
            return Ok(());
        }
    };
    for number in 0..count {
        let one = Connection { enclave: Some(number), ..connection.clone() };
        let told = Session::open(one, pins.clone()).map(|session| Box::new(session.statement));
        asked.push(Asked { url: url.clone(), number, told });
    }
    Ok(())
}

/// What is wrong with the group as a whole, though each enclave may be right.
fn faults(asked: &[Asked]) -> Vec<String> {
    let told: Vec<&Statement> = asked.iter().filter_map(|one| one.told.as_deref().ok()).collect();
    let mut faults = Vec::new();
    let Some(first) = told.first() else { return faults };
    let same = told.iter().all(|one| {
        one.group == first.group && one.network.genesis_validators_root == first.network.genesis_validators_root
    });
    if !same {
        faults.push("they are not one group on one chain: the list of URLs mixes groups".to_owned());
    }
    let holders = told.iter().filter(|one| one.fence.standing.signs() && one.fence.record.is_some()).count();
    if told.iter().all(|one| one.fence.record.is_some()) && same {
        match holders {
            1 => {}
            0 => faults.push("no enclave here holds the fence: nothing is signed by these".to_owned()),
            n => faults.push(format!(
                "{n} enclaves say that they hold the fence: they were asked one after the other, and it changed hands meanwhile; ask again"
            )),
        }
    }
    let mut boots: Vec<Bytes<32>> = told.iter().map(|one| one.boot_nonce).collect();
    boots.sort_unstable_by_key(|nonce| nonce.0);
    if boots.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
        faults.push("one enclave stands behind two of these URLs".to_owned());
    }
    faults
}

fn exit(asked: &[Asked], faults: &[String]) -> Exit {
    let failed = |one: &Asked| one.told.as_ref().err().map(anyhow::Error::is::<Refused>);
    let failed: Vec<bool> = asked.iter().filter_map(failed).collect();
    if failed.contains(&true) {
        Exit::Refused
    } else if !failed.is_empty() {
        Exit::NoAnswer
    } else if faults.is_empty() {
        Exit::Accepted
    } else {
        Exit::Refused
    }
}

fn text_of(asked: &[Asked], faults: &[String]) -> String {
    let mut table = Table::new(["PROXY", "ENCLAVE", "BOOT", "KEYS", "TERM", "SIGNS", "STANDING"]);
    for Asked { url, number, told } in asked {
        let (url, number) = (plain(url), number.to_string());
        match told {
            Ok(statement) => table.row([
                url,
                number,
                statement.boot_nonce.to_string().chars().take(10).collect(),
                statement.public_keys.count.to_string(),
                statement.fence.term.to_string(),
                status::signs(statement),
                status::standing(&statement.fence).to_owned(),
            ]),
            Err(error) => {
                let word = if error.is::<Refused>() { "REFUSED" } else { "NO ANSWER" };
                let dash = || "-".to_owned();
                table.row([
                    url,
                    number,
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    format!("{word}: {}", plain(&format!("{error:#}"))),
                ]);
            }
        }
    }
    let mut out = table.to_string();
    for fault in faults {
        let _ = writeln!(out, "note: {fault}");
    }
    let _ = writeln!(
        out,
        "{} asked; that there are no more is the proxies' word, the rest is proved by documents",
        plural(asked.len(), "enclave")
    );
    out
}

fn json_of(asked: &[Asked], faults: &[String]) -> Value {
    let one = |Asked { url, number, told }: &Asked| match told {
        Ok(statement) => {
            json!({ "url": url, "enclave": number, "result": "accepted", "status": status::json_of(statement) })
        }
        Err(error) => {
            let result = if error.is::<Refused>() { Exit::Refused } else { Exit::NoAnswer };
            json!({ "url": url, "enclave": number, "result": result.name(), "error": plain(&format!("{error:#}")) })
        }
    };
    json!({ "enclaves": asked.iter().map(one).collect::<Vec<_>>(), "faults": faults })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::NoAnswer;

    #[test]
    fn a_proxy_that_does_not_answer_is_a_line_and_not_the_end() {
        let none =
            |url: &str| Asked { url: url.to_owned(), number: 0, told: Err(NoAnswer("it is away".into()).into()) };
        let refused =
            Asked { url: "http://b:1".into(), number: 1, told: Err(Refused("PCR0 is another".into()).into()) };
        let asked = [none("http://a:1"), refused];
        assert_eq!(exit(&asked, &[]), Exit::Refused);
        assert_eq!(exit(&asked[..1], &[]), Exit::NoAnswer);
        let text = text_of(&asked, &faults(&asked));
        assert!(text.contains("NO ANSWER: it is away") && text.contains("REFUSED: PCR0 is another"), "{text}");
        assert!(text.contains("2 enclaves asked"), "{text}");
        assert_eq!(json_of(&asked, &[])["enclaves"][1]["result"], "refused");
    }
}
