//! Files that a command writes at its end. Whether they can be written is found out before an order goes out: an exit that is signed and
//! then lost cannot be taken back.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::util::must_be_new;

/// A folder in which a file can be made.
pub fn check_folder(folder: &Path) -> Result<()> {
    let metadata = fs::metadata(folder)
        .with_context(|| format!("the folder {} for what the command writes; nothing was sent", folder.display()))?;
    if !metadata.is_dir() {
        bail!("{} is no folder; nothing was sent", folder.display());
    }
    let probe = folder.join(format!(".casemate-{}.probe", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&probe);
    made.with_context(|| format!("no file can be made in {}; nothing was sent", folder.display()))?;
    fs::remove_file(&probe).with_context(|| format!("removing {}", probe.display()))
}

/// A file that will be written over, or made in a folder that was checked.
pub fn check_file(path: &Path) -> Result<()> {
    match OpenOptions::new().append(true).open(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be written; nothing was sent", path.display()))
        }
        _ => Ok(()),
    }
}

/// A file that is not there yet, in a folder in which one can be made.
pub fn check_new(path: &Path) -> Result<()> {
    must_be_new(path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    check_folder(folder.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_that_cannot_be_written_are_found_before_an_order_goes_out() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, file) = (folder.path().join("missing"), folder.path().join("file"));
        fs::write(&file, "").unwrap();
        for (checked, told) in [
            (check_folder(&missing), "missing for what the command writes; nothing was sent"),
            (check_folder(&file), "is no folder; nothing was sent"),
            (check_file(folder.path()), "cannot be written; nothing was sent"),
            (check_new(&missing.join("history.json")), "nothing was sent"),
            (check_new(&file), "exists already"),
        ] {
            let error = format!("{:#}", checked.unwrap_err());
            assert!(error.contains(told), "{error}");
        }
        check_folder(folder.path()).unwrap();
        check_file(&file).unwrap();
        check_file(&missing).unwrap();
        check_new(&missing).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
