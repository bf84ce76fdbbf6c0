//! What a power cut may leave of what a program has done to its files: told from the calls that it made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Settings, scratch};

/// One thing that a process has done to files below a directory; files by the order in which they were made.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Create { path: String, file: usize },
    Write { file: usize, bytes: Vec<u8> },
    SyncFile { file: usize },
    Rename { from: String, to: String },
    Remove { path: String },
    SyncDirectory,
}

/// Runs `scoregate` under `strace`; what it did to the files right in `directory`.
pub(crate) fn traced(settings: Settings, arguments: &[&str], directory: &Path) -> Vec<Step> {
    let found = Command::new("strace").arg("--version").output();
    let is_there = found.is_ok_and(|output| output.status.success());
    assert!(is_there, "strace is missing: run `cargo xtask test`, which installs it");
    let trace = tempfile::NamedTempFile::new_in(scratch()).unwrap();
    let calls = "trace=openat,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,sendfile,copy_file_range,fsync,\
                 fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat";
    let file = trace.path().to_str().unwrap();
    let wrapper = ["strace", "-f", "-y", "-s", "1000000", "-e", calls, "-o", file];
    let output = settings.set("PATH", "/usr/bin:/bin").under(&wrapper).run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = fs::read_to_string(trace.path()).unwrap();
    // Nothing is done there but what is understood here.
    let strange = [
        "pwrite",
        "writev",
        "truncate",
        "fallocate",
        "sendfile",
        "copy_file",
        "link(",
        "linkat(",
        "unfinished",
    ];
    let strange = trace.lines().filter(|line| {
        line.contains(directory.to_str().unwrap()) && strange.iter().any(|call| line.contains(call))
    });
    let strange: Vec<&str> = strange.filter(|line| !line.contains("unlink")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    steps(&trace, directory)
}

/// The steps of a trace of `strace -y` that concern the files right in `directory`.
fn steps(trace: &str, directory: &Path) -> Vec<Step> {
    let (mut steps, mut files) = (Vec::new(), BTreeMap::<String, usize>::new());
    let place = format!("{}/", directory.display());
    for line in trace.lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
        if result.starts_with('-') {
            continue;
        }
        // The file that a descriptor stands for, and the texts among the arguments.
        let opened = |text: &str| Some(text.split_once('<')?.1.split_once('>')?.0.to_owned());
        let texts: Vec<String> = texts(arguments);
        let inside =
            |path: &str| path.strip_prefix(&place).filter(|name| !name.contains('/')).map(ToOwned::to_owned);
        match call.rsplit(' ').next().unwrap_or(call) {
            "openat" if arguments.contains("O_CREAT") => {
                let Some(path) = opened(result).and_then(|path| inside(&path)) else { continue };
                assert!(!arguments.contains("O_TRUNC"), "a file is emptied in place: {line}");
                if arguments.contains("O_EXCL") {
                    let file = files.len();
                    files.insert(path.clone(), file);
                    steps.push(Step::Create { path, file });
                }
            }
            "write" => {
                let Some(path) = opened(arguments).and_then(|path| inside(&path)) else { continue };
                // A lock holds nothing.
                let file = files[&path];
                steps.push(Step::Write { file, bytes: texts[0].clone().into_bytes() });
            }
            "fsync" | "fdatasync" => {
                let Some(path) = opened(arguments) else { continue };
                if path == directory.display().to_string() {
                    steps.push(Step::SyncDirectory);
                } else if let Some(file) = inside(&path).and_then(|path| files.get(&path).copied()) {
                    steps.push(Step::SyncFile { file });
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let (Some(from), Some(to)) = (inside(&texts[0]), inside(&texts[1])) else { continue };
                if let Some(file) = files.remove(&from) {
                    files.insert(to.clone(), file);
                }
                steps.push(Step::Rename { from, to });
            }
            "unlink" | "unlinkat" => {
                if let Some(path) = inside(&texts[0]) {
                    files.remove(&path);
                    steps.push(Step::Remove { path });
                }
            }
            _ => {}
        }
    }
    steps
}

/// The quoted texts of a line of `strace`.
fn texts(line: &str) -> Vec<String> {
    let (mut texts, mut characters) = (Vec::new(), line.chars());
    while characters.any(|character| character == '"') {
        let mut text = String::new();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => match characters.next() {
                    Some('n') => text.push('\n'),
                    Some(escaped @ ('"' | '\\')) => text.push(escaped),
                    other => panic!("an escape that no rollout has: {other:?} in {line}"),
                },
                other => text.push(other),
            }
        }
        texts.push(text);
    }
    texts
}

/// What a directory may hold of `name` after the power failed behind some of the `steps`: `before` it held that, or nothing.
///
/// What a file system owes to a program is kept: what was synced before. Of anything else each part may be there or not: bytes of a file
/// that was not synced are lost, cut off, or zeros; names that were made, replaced or taken away in a directory that was not synced have
/// changed or not, each by itself.
pub(crate) fn after_a_crash(steps: &[Step], name: &str, before: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for done in 0..=steps.len() {
        let done = &steps[..done];
        let synced = done.iter().rposition(|step| matches!(step, Step::SyncDirectory)).map_or(0, |at| at + 1);
        let is_of_names =
            |step: &Step| matches!(step, Step::Create { .. } | Step::Rename { .. } | Step::Remove { .. });
        let (durable, loose) = done.split_at(synced);
        let loose: Vec<&Step> = loose.iter().filter(|step| is_of_names(step)).collect();
        assert!(loose.len() < 8, "{loose:?}");
        for kept in 0..1_u32 << loose.len() {
            let kept =
                loose.iter().enumerate().filter(|(at, _)| kept & (1 << at) != 0).map(|(_, step)| *step);
            let names = durable.iter().filter(|step| is_of_names(step)).chain(kept);
            match holder(names, done, name) {
                Holder::Before => found.push(before.to_vec()),
                Holder::Nobody => found.push(Vec::new()),
                Holder::File(file) => found.extend(contents(done, file)),
            }
        }
    }
    found
}

enum Holder {
    Before,
    Nobody,
    File(usize),
}

/// Which file is called `name` after some of the steps that give names, of all that were `done`.
fn holder<'s>(names: impl Iterator<Item = &'s Step>, done: &[Step], name: &str) -> Holder {
    // A file is renamed though it is not known how it came to its first name.
    let mut files = BTreeMap::<&str, usize>::new();
    for step in done {
        if let Step::Create { path, file } = step {
            files.insert(path, *file);
        }
    }
    let mut holder = Holder::Before;
    for step in names {
        match step {
            Step::Create { path, file } if path == name => holder = Holder::File(*file),
            Step::Rename { from, to } if to == name => holder = Holder::File(files[from.as_str()]),
            Step::Rename { from: path, .. } | Step::Remove { path } if path == name => {
                holder = Holder::Nobody
            }
            _ => {}
        }
    }
    holder
}

/// What a file may hold after the power failed behind the steps that were `done`.
fn contents(done: &[Step], of: usize) -> Vec<Vec<u8>> {
    let mut synced = 0;
    let mut bytes = Vec::new();
    for step in done {
        match step {
            Step::Write { file, bytes: more } if *file == of => bytes.extend_from_slice(more),
            Step::SyncFile { file } if *file == of => synced = bytes.len(),
            _ => {}
        }
    }
    let cut = |length: usize| bytes[..length].to_vec();
    let zeros = |from: usize| [&bytes[..from], &vec![0; bytes.len() - from]].concat();
    let middle = synced.midpoint(bytes.len());
    let mut found = vec![cut(synced), cut(middle), bytes.clone()];
    if synced < bytes.len() {
        found.extend([zeros(synced), zeros(middle)]);
    }
    found
}
