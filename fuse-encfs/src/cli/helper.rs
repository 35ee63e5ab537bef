//! Edge: the program as helper of mount(8), which calls it `mount.fuse.fuse-encfs SOURCE DIRECTORY
//! [-sfnv] [-o OPTION,...] [-t TYPE]`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// How mount(8) names a helper, before the type.
const PREFIX: &[u8] = b"mount.";
/// Options that are for mount(8) itself, for fstab(5), or for other kinds of filesystems' servers.
const NOT_FOR_US: [&[u8]; 10] = [
    b"_netdev",
    b"auto",
    b"async",
    b"defaults",
    b"group",
    b"noauto",
    b"nofail",
    b"nouser",
    b"user",
    b"users",
];
/// Options that are arguments of `fuse-encfs mount`.
const ARGUMENTS: [(&[u8], &str); 5] = [
    (b"key_fd", "--key-fd"),
    (b"key_file", "--key-file"),
    (b"log_file", "--log-file"),
    (b"threads", "--threads"),
    (b"volume", "--volume-id"),
];

/// What mount(8) wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Run with these arguments.
    Run(Vec<OsString>),
    /// Change what the mount on a directory refuses, as these options say.
    Remount { on: OsString, options: OsString },
    /// Do nothing.
    Fake,
}

/// Whether a program of this name is called as a helper.
pub(super) fn is_helper(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name.as_bytes().starts_with(PREFIX)
}

/// The call that the arguments of a helper come to, its own name first; `None` when they are not
/// those of one.
pub(super) fn call(arguments: Vec<OsString>) -> Option<Call> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    let (store, on) = (arguments.next()?, arguments.next()?);
    let mut options: Vec<u8> = Vec::new();
    let mut is_fake = false;
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            b"-o" => {
                options.push(b',');
                options.extend(arguments.next()?.as_bytes());
            }
            b"-t" => _ = arguments.next()?,
            [b'-', flags @ ..] if !flags.is_empty() => {
                if !flags.iter().all(|flag| b"sfnv".contains(flag)) {
                    return None;
                }
                is_fake |= flags.contains(&b'f');
            }
            _ => return None,
        }
    }
    if is_fake {
        return Some(Call::Fake);
    }
    let mut run: Vec<OsString> = vec![program, "mount".into(), store, on.clone()];
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut is_remount = false;
    for option in options.split(|byte| *byte == b',') {
        match option {
            b"remount" => is_remount = true,
            option if is_for_others(option) => {}
            option => match argument(option) {
                Some((name, value)) => run.extend([name.into(), value]),
                None => kept.push(option),
            },
        }
    }
    let kept = OsString::from_vec(kept.join(&b','));
    if is_remount {
        return Some(Call::Remount { on, options: kept });
    }
    if !kept.is_empty() {
        run.extend(["-o".into(), kept]);
    }
    Some(Call::Run(run))
}

fn is_for_others(option: &[u8]) -> bool {
    option.is_empty()
        || NOT_FOR_US.contains(&option)
        || option.starts_with(b"x-")
        || option.starts_with(b"comment=")
}

fn argument(option: &[u8]) -> Option<(&'static str, OsString)> {
    ARGUMENTS.into_iter().find_map(|(name, argument)| {
        let value = option.strip_prefix(name)?.strip_prefix(b"=")?;
        Some((argument, OsString::from_vec(value.to_vec())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[track_caller]
    fn check(line: &str, want: Option<&str>) {
        let got = match call(words(line)) {
            Some(Call::Run(arguments)) => Some(arguments.join(OsStr::new(" "))),
            Some(Call::Remount { on, options }) => {
                Some([OsString::from("remount"), on, options].join(OsStr::new(" ")))
            }
            Some(Call::Fake) => Some("fake".into()),
            None => None,
        };
        assert_eq!(got, want.map(OsString::from), "{line}");
    }

    #[test]
    fn a_call_of_a_helper_becomes_one_of_the_program() {
        check("m s d", Some("m mount s d"));
        check(
            "m s d -o rw,key_file=/k,volume=ab,threads=2,noexec,x-systemd.after=a,_netdev",
            Some("m mount s d --key-file /k --volume-id ab --threads 2 -o rw,noexec"),
        );
        check(
            "m s d -sn -v -t fuse.fuse-encfs -o log_file=/l=1 -o ro",
            Some("m mount s d --log-file /l=1 -o ro"),
        );
        check(
            "m s d -o key_file,key_fd=",
            Some("m mount s d --key-fd  -o key_file"),
        );
        check("m s d -o remount,ro,key_file=/k", Some("remount d ro"));
        check("m s d -f -o key_file=/k", Some("fake"));
    }

    #[test]
    fn what_no_mount_says_is_refused() {
        for line in ["m", "m s", "m s d x", "m s d -o", "m s d -N ns", "m s d -"] {
            check(line, None);
        }
    }

    #[test]
    fn a_helper_is_known_by_its_name() {
        for (name, want) in [
            ("/sbin/mount.fuse.fuse-encfs", true),
            ("mount.fuse.fuse-encfs", true),
            ("/usr/bin/fuse-encfs", false),
            ("/sbin/mount.x/fuse-encfs", false),
            ("", false),
        ] {
            assert_eq!(is_helper(OsStr::new(name)), want, "{name}");
        }
    }
}
