//! Core: every error code that an operator can meet, with its exit code and what to do about it.
//!
//! The library crates name their failures; this table alone decides what a failure means to the
//! process. docs/errors.md holds the same rows, and a test compares the two.

mod entries;

pub use entries::ENTRIES;

/// Process exit codes by class. Many error codes share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// The configured platform is not there.
    PlatformMissing = 40,
    /// Evidence or a token was refused.
    EvidenceRefused = 41,
    /// The vault's release policy denied the key.
    ReleaseDenied = 42,
    /// A service could not be reached, or not used, within the retry budget.
    ServiceUnreachable = 43,
    /// The CA certificate does not stem from the released secret.
    CaMismatch = 44,
    /// The volume could not be mounted.
    MountFailed = 45,
    /// Tampering or a rollback was found.
    Tampered = 46,
    /// The key does not open the volume.
    WrongKey = 48,
    /// Another process uses the volume or the socket.
    InUse = 49,
    /// Not our volume, or a format that is newer than this program.
    NotOurVolume = 50,
    /// The store is full.
    StoreFull = 51,
    /// The command line is wrong.
    Usage = 64,
    /// An input file is malformed.
    Malformed = 65,
    /// A bug in this program.
    Bug = 70,
    /// The configuration is wrong.
    Configuration = 78,
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// One row of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Stable name, `area.reason`.
    pub code: &'static str,
    /// What the process exits with when this ends it.
    pub exit: Exit,
    /// What to look at first.
    pub hint: &'static str,
}

/// Looks a code up. A code that is not in the table is a bug, and ends the process as one.
pub fn find(code: &str) -> &'static Entry {
    ENTRIES
        .iter()
        .find(|entry| entry.code == code)
        .unwrap_or(&UNKNOWN)
}

const UNKNOWN: Entry = Entry {
    code: "bug.unknown_code",
    exit: Exit::Bug,
    hint: "this is a defect of the program: report it with the log",
};

const fn entry(code: &'static str, exit: Exit, hint: &'static str) -> Entry {
    Entry { code, exit, hint }
}
