//! The crates that an image is compiled from, unpacked anew from archives with the digests of Cargo.lock.
//!
//! cargo compares an archive with its digest when it downloads it, and never again: neither what lies in the user's cache, nor what was
//! unpacked from it, where an editor or another program may have changed it. So the image's cargo home has the index and the archives of
//! the user's, each archive compared here, and nothing that was unpacked before.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// What is linked in from the user's registry.
const LINKED: [&str; 2] = ["index", "cache"];

/// Gives `cargo_home` the index and the archives of the user's registry, and no unpacked crate. The archives of `lock` must be those that
/// it names; what is missing cargo downloads, and compares itself.
pub fn link(cargo_home: &Path, user_registry: &Path, lock: &str) -> Result<()> {
    let registry = cargo_home.join("registry");
    remove(&registry)?;
    fs::create_dir_all(&registry).with_context(|| format!("making {}", registry.display()))?;
    for name in LINKED {
        let (from, to) = (user_registry.join(name), registry.join(name));
        fs::create_dir_all(&from).with_context(|| format!("making {}", from.display()))?;
        symlink(&from, &to).with_context(|| format!("linking {}", to.display()))?;
    }
    check_archives(&user_registry.join("cache"), lock)
}

/// A link is removed, and not what it leads to.
fn remove(registry: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(registry) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(registry),
        Ok(_) => fs::remove_file(registry),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("removing {}", registry.display()))
}

/// Each archive that is in the cache has the digest that the lock file names.
fn check_archives(cache: &Path, lock: &str) -> Result<()> {
    let registries = folders(cache)?;
    for Archive { file, checksum } in archives(lock)? {
        for path in registries.iter().map(|registry| registry.join(&file)) {
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
            };
            let found = const_hex::encode(Sha256::digest(&bytes));
            if found != checksum {
                bail!(
                    "{} has the SHA-256 {found}; Cargo.lock names {checksum}. Remove the file, and find out who changed it",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

fn folders(cache: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", cache.display());
    let entries = fs::read_dir(cache).with_context(reading)?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().with_context(reading)?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}

/// An archive of a registry.
struct Archive {
    file: String,
    checksum: String,
}

/// Those that a lock file names. Packages of the workspace have no source.
fn archives(lock: &str) -> Result<Vec<Archive>> {
    let table: toml::Table = lock.parse().context("in Cargo.lock")?;
    let packages = table.get("package").and_then(toml::Value::as_array).context("Cargo.lock names no package")?;
    let mut archives = Vec::new();
    for package in packages {
        let text = |name: &str| package.get(name).and_then(toml::Value::as_str);
        if text("source").is_none() {
            continue;
        }
        let (Some(name), Some(version), Some(checksum)) = (text("name"), text("version"), text("checksum")) else {
            bail!("Cargo.lock names a package of a source without its checksum: {}", text("name").unwrap_or("?"));
        };
        archives.push(Archive { file: format!("{name}-{version}.crate"), checksum: checksum.to_owned() });
    }
    Ok(archives)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(checksum: &str) -> String {
        format!(
            "version = 4\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\n\
             source = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{checksum}\"\n\
             [[package]]\nname = \"not-there\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\nchecksum = \"00\"\n"
        )
    }

    #[test]
    fn what_was_unpacked_before_is_not_compiled_and_a_changed_archive_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (user, home) = (folder.path().join("registry"), folder.path().join("home"));
        fs::create_dir_all(user.join("cache/index.crates.io")).unwrap();
        fs::create_dir_all(user.join("src/index.crates.io/a-1.2.3")).unwrap();
        fs::write(user.join("cache/index.crates.io/a-1.2.3.crate"), b"archive").unwrap();
        let good = lock(&const_hex::encode(Sha256::digest(b"archive")));
        // As earlier versions left it: a link to all of the user's registry.
        fs::create_dir_all(&home).unwrap();
        symlink(&user, home.join("registry")).unwrap();
        link(&home, &user, &good).unwrap();
        assert!(user.join("src/index.crates.io/a-1.2.3").exists(), "the user's own is left alone");
        assert!(!home.join("registry/src").exists());
        assert!(
            home.join("registry/cache/index.crates.io/a-1.2.3.crate").exists() && home.join("registry/index").exists()
        );
        // What an earlier build has unpacked is not taken either.
        fs::create_dir_all(home.join("registry/src/index.crates.io/a-1.2.3")).unwrap();
        link(&home, &user, &good).unwrap();
        assert!(!home.join("registry/src").exists());
        fs::write(user.join("cache/index.crates.io/a-1.2.3.crate"), b"changed").unwrap();
        let error = format!("{:#}", link(&home, &user, &good).unwrap_err());
        assert!(error.contains("a-1.2.3.crate has the SHA-256") && error.contains("Cargo.lock names"), "{error}");
        let error = format!("{:#}", link(&home, &user, &good.replace("checksum = \"00\"\n", "")).unwrap_err());
        assert!(error.contains("without its checksum: not-there"), "{error}");
    }
}
