//! Profiles: what an operator would give with every command, under a name.
//!
//! An option on the command line wins, then its variable in the environment, then the profile. Variables and profile become the
//! defaults of clap's options, so that one parser reads a value wherever it comes from.
//!
//! A profile says which enclave is the right one and whose key signs. The file is therefore taken only where no one but its owner can
//! write it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::ArgPredicate;
use clap::{Arg, Command};
use serde::Deserialize;

use crate::input;
use crate::util::quoted;

/// The options that a variable can stand for. No variable names the root of trust.
const VARIABLES: [(&str, &str); 9] = [
    ("url", "CASEMATE_URL"),
    ("tls_ca", "CASEMATE_TLS_CA"),
    ("tls_certificate", "CASEMATE_TLS_CERTIFICATE"),
    ("tls_key", "CASEMATE_TLS_KEY"),
    ("measurements", "CASEMATE_MEASUREMENTS"),
    ("group", "CASEMATE_GROUP"),
    ("network", "CASEMATE_NETWORK"),
    ("fence", "CASEMATE_FENCE"),
    ("operator_key", "CASEMATE_OPERATOR_KEY"),
];
/// What an enclave must be: filled in only where a command takes all of it.
const PINS: [&str; 5] = ["measurements", "root", "group", "network", "fence"];

/// A file of profiles.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    profile: BTreeMap<String, Profile>,
}

/// What a name stands for.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Profile {
    /// One for each proxy of the group. Commands go to the first.
    urls: Vec<String>,
    measurements: Option<PathBuf>,
    root: Option<PathBuf>,
    group: Option<String>,
    network: Option<String>,
    fence: Option<String>,
    /// The measured configuration, for `casemate attest`.
    configuration: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    operator_key: Keys,
}

/// One path, or a list of them.
#[derive(Default, Deserialize)]
#[serde(untagged, expecting = "a path or a list of paths")]
enum Keys {
    #[default]
    None,
    One(PathBuf),
    Several(Vec<PathBuf>),
}

/// What options are where the command line does not say.
#[derive(Debug, Default)]
pub struct Defaults {
    values: BTreeMap<&'static str, Vec<OsString>>,
    /// Where they come from, for an error about them.
    source: Option<String>,
}

impl Defaults {
    /// From the environment, and from the profile that a command line or the environment names.
    pub fn gather(words: &[OsString], environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let mut defaults = Self::default();
        let name = given(words, "--profile").or_else(|| variable("CASEMATE_PROFILE"));
        match name {
            Some(name) => defaults.profile(&name.to_string_lossy(), &file(words, &variable)?)?,
            None if given(words, "--profiles").is_some() => {
                bail!("--profiles names a file, and nothing says which profile of it: add --profile NAME")
            }
            None => {}
        }
        for (option, name) in VARIABLES {
            if let Some(value) = variable(name) {
                defaults.values.insert(option, vec![value]);
                if option == "url" {
                    defaults.values.remove("peer");
                }
            }
        }
        if variable("CASEMATE_TLS_CERTIFICATE").is_some() != variable("CASEMATE_TLS_KEY").is_some() {
            bail!("CASEMATE_TLS_CERTIFICATE and CASEMATE_TLS_KEY go together, and one of them is not set");
        }
        Ok(defaults)
    }

    /// Takes in a profile of a file.
    fn profile(&mut self, name: &str, path: &Path) -> Result<()> {
        let mut file = read(path)?;
        let Some(profile) = file.profile.remove(name) else {
            let known: Vec<&str> = file.profile.keys().map(String::as_str).collect();
            bail!("{} has no profile {}; it has {}", path.display(), quoted(name), known.join(", "));
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut put = |option: &'static str, values: Vec<OsString>| {
            if !values.is_empty() {
                self.values.insert(option, values);
            }
        };
        let mut urls = profile.urls.into_iter().map(OsString::from);
        put("url", urls.next().into_iter().collect());
        put("peer", urls.collect());
        for (option, text) in [("group", profile.group), ("network", profile.network), ("fence", profile.fence)] {
            put(option, text.map(OsString::from).into_iter().collect());
        }
        for (option, file) in [
            ("measurements", profile.measurements),
            ("root", profile.root),
            ("configuration", profile.configuration),
            ("tls_ca", profile.tls_ca),
            ("tls_certificate", profile.tls_certificate),
            ("tls_key", profile.tls_key),
        ] {
            put(option, file.map(|file| folder.join(file).into_os_string()).into_iter().collect());
        }
        let keys = match profile.operator_key {
            Keys::None => Vec::new(),
            Keys::One(key) => vec![key],
            Keys::Several(keys) => keys,
        };
        put("operator_key", keys.into_iter().map(|key| folder.join(key).into_os_string()).collect());
        self.source = Some(format!("the profile {} of {}", quoted(name), path.display()));
        Ok(())
    }

    /// Whether there is a proxy to ask where the command line names none.
    pub fn has_url(&self) -> bool {
        self.values.contains_key("url")
    }

    /// Where values come from that are not on the command line.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// A command, and all below it, whose options have these defaults.
    pub fn fill(&self, command: Command, words: &[OsString]) -> Command {
        let url = if given(words, "--url").is_some() || !words.iter().any(|word| is_url(word)) {
            UrlForm::Option
        } else {
            UrlForm::Argument
        };
        self.fill_below(command, url)
    }

    fn fill_below(&self, command: Command, url: UrlForm) -> Command {
        let takes = |id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
        let (judges, connects) = (takes("allow_debug"), takes("enclave"));
        command
            .mut_args(|arg| {
                let id = arg.get_id().as_str().to_owned();
                let fits = match id.as_str() {
                    "url" => connects && arg.is_positional(),
                    "peer" => url == UrlForm::Option,
                    pin if PINS.contains(&pin) => judges,
                    _ => true,
                };
                if fits { self.filled(arg, &id, url) } else { arg }
            })
            .mut_subcommands(|below| self.fill_below(below, url))
    }

    fn filled(&self, arg: Arg, id: &str, url: UrlForm) -> Arg {
        let Some(values) = self.values.get(id) else { return arg };
        let arg = match (id, url) {
            ("url", UrlForm::Argument) => return arg,
            // An argument that may be missing could not stand before one that may not.
            ("url", UrlForm::Option) => arg.long("url"),
            // A PCR on the command line is of the image that is meant.
            ("measurements", _) => arg.default_value_ifs(
                ["pcr0", "pcr1", "pcr2", "pcr8"].map(|pcr| (pcr, ArgPredicate::IsPresent, None::<&str>)),
            ),
            _ => arg,
        };
        arg.required(false).default_values(values.clone())
    }
}

/// How the proxy's URL stands on the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UrlForm {
    /// As a word of its own.
    Argument,
    /// As `--url`, or not at all.
    Option,
}

fn is_url(word: &OsStr) -> bool {
    let word = word.to_string_lossy();
    ["http://", "https://"].iter().any(|scheme| word.starts_with(scheme))
}

/// The value of an option, read before there is a parser: it decides what the parser's defaults are.
fn given(words: &[OsString], option: &str) -> Option<OsString> {
    let mut words = words.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if word == option {
            return words.next().cloned();
        }
        if let Some(value) = word.to_str().and_then(|word| word.strip_prefix(option)?.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

/// Which file has the profiles.
fn file(words: &[OsString], variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(path) = given(words, "--profiles").or_else(|| variable("CASEMATE_CONFIG")) {
        return Ok(path.into());
    }
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    let folder =
        folder.context("no folder for profiles: set HOME or XDG_CONFIG_HOME, or name the file with --profiles")?;
    Ok(folder.join("casemate").join("config.toml"))
}

fn read(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).with_context(|| format!("opening the profiles in {}", path.display()))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        bail!(
            "{} has mode {mode:03o}: others may write it, and it says which enclave is the right one. Run chmod go-w on it",
            path.display()
        );
    }
    let text = input::read(path)?;
    let text =
        std::str::from_utf8(input::without_bom(&text)).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let file: File = toml::from_str(text).map_err(|error| {
        let before = error.span().map_or(0, |span| text.bytes().take(span.start).filter(|b| *b == b'\n').count());
        let line = before.saturating_add(1);
        anyhow::anyhow!("{}, line {line}: {}", path.display(), error.message().replace('\n', ", "))
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    const FILE: &str = r#"
        [profile.main]
        urls = ["https://one:9000", "https://two:9000"]
        measurements = "measurements.json"
        group = "main"
        network = "mainnet"
        fence = "dynamodb"
        tls_ca = "/etc/ca.pem"
        tls_certificate = "me.pem"
        tls_key = "me.key"
        operator_key = "operator.pem"

        [profile.test]
        urls = ["http://127.0.0.1:9000"]
        operator_key = ["a.pem", "b.pem"]
    "#;

    fn folder(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    fn parsed(words: &[&str], environment: &[(&str, &str)]) -> Result<String, String> {
        let words: Vec<OsString> = std::iter::once(&"casemate").chain(words).map(OsString::from).collect();
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        let defaults = Defaults::gather(&words, &variable).map_err(|error| format!("{error:#}"))?;
        let parsed = cli::parse(&words, &defaults).map_err(|error| error.to_string())?;
        Ok(format!("{:?}", parsed.command))
    }

    #[test]
    fn the_command_line_wins_then_the_environment_then_the_profile() {
        let (folder, path) = folder(FILE);
        let profile = ["--profiles", path.as_str(), "--profile", "main"];
        let run = |words: &[&str], environment: &[(&str, &str)]| {
            parsed(&[&profile[..], words].concat(), environment).unwrap()
        };
        let all = run(&["keys", "list"], &[]);
        let measurements = folder.path().join("measurements.json");
        for part in
            [r#"url: "https://one:9000""#, "/etc/ca.pem", measurements.to_str().unwrap(), r#"group: Some("main")"#]
        {
            assert!(all.contains(part), "{part}: {all}");
        }
        let environment = [("CASEMATE_GROUP", "spare"), ("CASEMATE_URL", "https://three:9000"), ("CASEMATE_FENCE", "")];
        let text = run(&["keys", "list"], &environment);
        assert!(text.contains(r#"group: Some("spare")"#) && text.contains("https://three:9000"), "{text}");
        assert!(text.contains("Kind(Dynamodb)"), "{text}");
        let text = run(&["keys", "list", "https://four:9000", "--group", "last"], &environment);
        assert!(text.contains(r#"group: Some("last")"#) && text.contains("https://four:9000"), "{text}");
        // A PCR that is given is of another image than the profile's.
        let text = run(&["keys", "list", "--pcr0", "00"], &[]);
        assert!(text.contains("measurements: None"), "{text}");
        // Also where another argument stands behind the URL.
        let text = run(&["history", "import", "history.json"], &[]);
        assert!(text.contains(r#"file: "history.json""#) && text.contains("https://one:9000"), "{text}");
        let text = run(&["history", "import", "https://five:9000", "history.json"], &[]);
        assert!(text.contains(r#"file: "history.json""#) && text.contains("https://five:9000"), "{text}");
        // TLS files of a profile ask for no URL where a command needs none.
        let text = run(&["log", "verify", "folder"], &[]);
        assert!(text.contains("url: None"), "{text}");
        // Half of a pair on the command line is not made whole with the profile's other half.
        let half = parsed(&[&profile[..], &["keys", "list", "--tls-key", "k"]].concat(), &[]).unwrap_err();
        assert!(half.contains("--tls-certificate"), "{half}");
        let text = run(&["command", "sign", "file"], &[]);
        assert!(text.contains("operator.pem"), "{text}");
    }

    #[test]
    fn a_policy_for_an_image_takes_nothing_from_a_profile() {
        let (_folder, path) = folder(FILE);
        let words = ["--profiles", &path, "--profile", "main", "kms-policy", "--account", "123456789012"];
        let more = ["--parent-role", "a", "--administrator", "b"];
        let told = parsed(&[&words[..], &more[..]].concat(), &[]).unwrap_err();
        assert!(told.contains("--group"), "{told}");
    }

    #[test]
    fn a_profile_is_found_where_the_environment_says() {
        let (_folder, path) = folder(FILE);
        let environment = [("CASEMATE_CONFIG", path.as_str()), ("CASEMATE_PROFILE", "test")];
        let text = parsed(&["fence", "handover"], &environment).unwrap();
        assert!(text.contains("a.pem") && text.contains("b.pem"), "{text}");
        let home = tempfile::tempdir().unwrap();
        let below = home.path().join("casemate");
        std::fs::create_dir(&below).unwrap();
        std::fs::copy(&path, below.join("config.toml")).unwrap();
        let environment = [("XDG_CONFIG_HOME", home.path().to_str().unwrap()), ("CASEMATE_PROFILE", "test")];
        assert!(parsed(&["keys"], &environment).unwrap().contains("http://127.0.0.1:9000"));
    }

    #[test]
    fn a_profile_that_cannot_be_used_says_why_and_nothing_is_done() {
        let (_folder, path) = folder(FILE);
        let told = |words: &[&str]| parsed(words, &[]).unwrap_err();
        let text = told(&["--profiles", &path, "--profile", "mian", "keys"]);
        assert!(text.contains("has no profile «mian»; it has main, test"), "{text}");
        assert!(told(&["--profiles", &path, "keys"]).contains("add --profile NAME"));
        assert!(parsed(&["--profile", "main", "keys"], &[]).unwrap_err().contains("HOME"));
        let half = parsed(&["keys", "http://a:1"], &[("CASEMATE_TLS_KEY", "k")]).unwrap_err();
        assert!(half.contains("go together"), "{half}");
        for (text, why) in [
            ("[profile.main]\nurl = \"http://a:1\"\n", "line 2: unknown field `url`, expected one of `urls`"),
            ("[profiles.main]\n", "unknown field `profiles`"),
            ("[profile.main]\nurls = 1\n", "line 2"),
            ("[profile.main]\noperator_key = 1\n", "a path or a list of paths"),
        ] {
            let (_folder, path) = folder(text);
            let told = told(&["--profiles", &path, "--profile", "main", "keys"]);
            assert!(told.contains(why), "{text}: {told}");
        }
        let (_folder, path) = folder("[profile.main]\nfence = \"zookeeper\"\nurls = [\"http://a:1\"]\n");
        let text = told(&["--profiles", &path, "--profile", "main", "keys"]);
        assert!(text.contains("zookeeper"), "{text}");
    }

    #[test]
    fn a_file_of_profiles_that_others_may_write_is_refused_with_its_mode() {
        let (_folder, path) = folder(FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
        let told = parsed(&["--profiles", &path, "--profile", "main", "keys"], &[]).unwrap_err();
        assert!(told.contains("has mode 664") && told.contains("chmod go-w"), "{told}");
    }
}
