//! Ramdisks: cpio archives in the form that Linux unpacks («newc», Documentation/driver-api/early-userspace/buffer-format.rst),
//! with nothing in them that differs between two machines: no times, no owners, no inode numbers but the order.

/// Archives are padded to whole blocks, so that the next ramdisk starts at a boundary wherever they are joined.
const BLOCK: usize = 512;
const TRAILER: &str = "TRAILER!!!";

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A folder with these permissions.
    Folder(u32),
    /// A file with these permissions.
    File(u32, Vec<u8>),
    /// A character device: permissions, major and minor number.
    Device(u32, u32, u32),
}

/// An archive of the entries, in their order. Names are relative to the root, without a slash in front.
pub fn archive(entries: &[(&str, Entry)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, (name, entry)) in (1_u32..).zip(entries) {
        match entry {
            Entry::Folder(mode) => header(&mut out, number, name, 0o040_000 | mode, 2, &[], (0, 0)),
            Entry::File(mode, content) => header(&mut out, number, name, 0o100_000 | mode, 1, content, (0, 0)),
            Entry::Device(mode, major, minor) => {
                header(&mut out, number, name, 0o020_000 | mode, 1, &[], (*major, *minor));
            }
        }
    }
    header(&mut out, 0, TRAILER, 0, 1, &[], (0, 0));
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn header(out: &mut Vec<u8>, number: u32, name: &str, mode: u32, links: u32, content: &[u8], device: (u32, u32)) {
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    // Magic; inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), length of the name with its
    // final zero, checksum (not used).
    let fields = [
        number,
        mode,
        0,
        0,
        links,
        0,
        len(content.len()),
        0,
        0,
        device.0,
        device.1,
        len(name.len()).saturating_add(1),
        0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_archive_has_no_trace_of_who_made_it() {
        let archive = archive(&[("dev", Entry::Folder(0o755)), ("init", Entry::File(0o500, b"abcde".to_vec()))]);
        let text = String::from_utf8_lossy(&archive);
        assert!(text.starts_with(concat!(
            "070701", "00000001", "000041ed", "00000000", "00000000", "00000002", "00000000", "00000000", "00000000",
            "00000000", "00000000", "00000000", "00000004", "00000000", "dev\0"
        )));
        assert!(text.contains("init\0\0abcde\0\0\x00070701"), "{text}");
        assert_eq!(archive.len() % BLOCK, 0);
    }

    /// Another program reads it the same way; where there is none the test above stands alone.
    #[test]
    fn cpio_lists_what_was_put_in() {
        let entries = [
            ("dev", Entry::Folder(0o755)),
            ("dev/console", Entry::Device(0o600, 5, 1)),
            ("init", Entry::File(0o500, vec![7; 1001])),
        ];
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--list", "--verbose", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("SKIPPED: there is no cpio here");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&archive(&entries)).unwrap();
        let listed = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{listed}");
        assert_eq!((lines[0][0], lines[0][8]), ("drwxr-xr-x", "dev"));
        assert_eq!((lines[1][0], lines[1][4], lines[1][5]), ("crw-------", "5,", "1"));
        assert_eq!((lines[2][0], lines[2][4], lines[2][8]), ("-r-x------", "1001", "init"));
    }
}
