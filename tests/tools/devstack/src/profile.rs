//! A profile of the stack for `casemate`, in a file of the stack's own: nothing is written to the user's home unasked.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Its name.
pub const NAME: &str = "dev";

/// What an operator needs.
pub struct Profile<'a> {
    pub url: &'a str,
    pub nsm: &'a Path,
    pub group: &'a str,
    pub network: &'a str,
    /// Nothing where the keys are in clear: there is no fence then.
    pub fence: Option<&'a str>,
    pub operator_key: Option<&'a Path>,
    /// The measured configuration.
    pub configuration: Option<&'a Path>,
}

impl Profile<'_> {
    /// Writes it into a folder; where it is.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("profiles.toml");
        let written = || -> Result<()> {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path)?;
            Ok(file.write_all(self.text()?.as_bytes())?)
        };
        written().with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn text(&self) -> Result<String> {
        let path = |path: &Path| toml::Value::String(path.display().to_string());
        let mut table = toml::Table::new();
        table.insert("urls".to_owned(), toml::Value::Array(vec![self.url.to_owned().into()]));
        table.insert("root".to_owned(), path(&self.nsm.join("root.pem")));
        table.insert("measurements".to_owned(), path(&self.nsm.join("measurements.json")));
        table.insert("group".to_owned(), self.group.to_owned().into());
        table.insert("network".to_owned(), self.network.to_owned().into());
        table.insert("fence".to_owned(), self.fence.unwrap_or("none").to_owned().into());
        let files = [("operator_key", self.operator_key), ("configuration", self.configuration)];
        table.extend(files.into_iter().filter_map(|(name, file)| Some((name.to_owned(), path(file?)))));
        let profile = toml::Table::from_iter([(NAME.to_owned(), table.into())]);
        let file = toml::Table::from_iter([("profile".to_owned(), profile.into())]);
        let text = toml::to_string(&file).context("writing TOML")?;
        Ok(format!(
            "# Of the development stack, which writes it at every start: casemate --profiles THIS-FILE --profile {NAME} status\n{text}"
        ))
    }
}
