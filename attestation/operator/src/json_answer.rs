//! Answers in JSON of commands that have no form of their own for programs, and errors.

use serde_json::json;

use crate::exit::Exit;

/// What a command says to people, line by line, and how it ended.
pub fn answer(text: &str, exit: Exit) -> String {
    let lines: Vec<&str> = text.lines().collect();
    format!("{:#}\n", json!({ "exit_code": exit.code(), "result": exit.name(), "lines": lines }))
}

/// Why a command came to no answer.
pub fn error(sentence: &str, exit: Exit) -> String {
    format!("{:#}\n", json!({ "exit_code": exit.code(), "result": exit.name(), "error": sentence }))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use serde_json::Value;

    #[test]
    fn every_command_answers_in_json_where_it_is_asked_to() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("operator.pem").to_str().unwrap().to_owned();
        let run = |words: &[&str]| {
            let words: Vec<OsString> = std::iter::once(&"casemate").chain(words).map(OsString::from).collect();
            let mut out = Vec::new();
            let exit = crate::run(&words, &mut out, &mut Vec::new());
            let value: Value = serde_json::from_slice(&out).unwrap();
            (exit, value)
        };
        let (exit, made) = run(&["--json", "operator", "keygen", "--out", &key]);
        assert_eq!((exit, &made["exit_code"], &made["result"]), (crate::Exit::Accepted, &0.into(), &"accepted".into()));
        assert!(made["lines"].as_array().is_some_and(|lines| !lines.is_empty()), "{made}");
        let (exit, again) = run(&["operator", "keygen", "--out", &key, "--json"]);
        assert_eq!(
            (exit, &again["exit_code"], &again["result"]),
            (crate::Exit::Unusable, &2.into(), &"unusable".into())
        );
        assert!(again["error"].as_str().unwrap().contains("exists already"), "{again}");
    }
}
