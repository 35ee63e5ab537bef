//! Core: what goes over the control socket: one request, then replies, each one line of JSON.
//!
//! ```text
//! > {"request":"scrub"}
//! < {"progress":{"done_bytes":4096,"total_bytes":8192}}
//! < {"damaged":{"file":"/a"}}
//! < {"scrubbed":{"checked_bytes":8192,"damaged_files":1,"complete":true}}
//! ```
//!
//! A key is no text, which could be left behind anywhere: its 32 bytes follow the line of the
//! request as they are.

use serde::{Deserialize, Serialize};

use super::controlled::{ControlError, Figures, Happening, Scrubbed};

/// Bytes of a request's line at most.
pub(super) const REQUEST_MAX: usize = 1024;
/// Bytes of a reply's line at most: a path is no longer than that by far.
pub(super) const REPLY_MAX: usize = 1 << 20;
/// Bytes of a key.
pub(super) const KEY_LEN: usize = 32;
/// Seconds that a volume can be frozen for.
pub(crate) const FREEZE_SECONDS_MAX: u32 = 3_600;

/// What is asked for. Every variant has braces, so that what it does not know is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// Which volume it is, and where.
    About {},
    /// Write a checkpoint now.
    Checkpoint {},
    /// Hold changes back, for so long at most.
    Freeze { seconds: u32 },
    /// Replace keys.
    Rekey {
        /// Whether the bytes of a new key-encryption key follow the line.
        key_follows: bool,
        /// The epoch of that key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kek_epoch: Option<u32>,
        /// Whether to seal everything anew under a new master key.
        reseal: bool,
    },
    /// Read everything.
    Scrub {},
    /// Figures.
    Stats {},
    /// Let changes go on.
    Thaw {},
}

/// An answer. All but [`Reply::Happening`] are the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    About(About),
    Done {},
    Failed(Failed),
    Scrubbed(Scrubbed),
    Stats(Figures),
    #[serde(untagged)]
    Happening(Happening),
}

/// Which volume is mounted, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Id of the volume.
    pub volume: String,
    /// Where it is mounted, as the mounting process saw it.
    pub mountpoint: String,
    /// The mounting process, in its own PID namespace.
    pub pid: u32,
}

/// Why a request was not done, as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failed {
    /// Stable name.
    pub(crate) code: String,
    /// Exit code for a program that ends with it.
    pub(crate) exit: u8,
    /// For people.
    pub(crate) message: String,
}

impl Request {
    /// Whether nothing changes by it. Such requests may come every few seconds.
    pub(super) fn only_asks(&self) -> bool {
        matches!(self, Self::About {} | Self::Stats {})
    }

    /// Parses the line of a request.
    pub(super) fn parse(line: &[u8]) -> Result<Self, ControlError> {
        let request = serde_json::from_slice(line).map_err(|e| malformed(&e))?;
        if let Self::Freeze { seconds } = &request
            && !(1..=FREEZE_SECONDS_MAX).contains(seconds)
        {
            let message = format!("seconds must be 1 to {FREEZE_SECONDS_MAX}");
            return Err(ControlError::Request(message));
        }
        Ok(request)
    }
}

impl From<&ControlError> for Failed {
    fn from(e: &ControlError) -> Self {
        Self {
            code: e.code().into(),
            exit: e.exit_code(),
            message: e.to_string(),
        }
    }
}

/// A message as a line.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    // Maps with keys of text, numbers and texts: nothing that JSON has not.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

fn malformed(e: &serde_json::Error) -> ControlError {
    // Where and what kind, but nothing of what was there.
    let message = format!("{:?} at column {}", e.classify(), e.column());
    ControlError::Request(message)
}

#[cfg(test)]
mod tests {
    use super::super::controlled::Figure;
    use super::*;

    #[track_caller]
    fn check_request(text: &str, want: Option<Request>) {
        let got = Request::parse(text.as_bytes());
        assert_eq!(got.as_ref().ok(), want.as_ref(), "{text}: {got:?}");
        if let Some(request) = want {
            assert_eq!(
                String::from_utf8(line(&request)).unwrap(),
                format!("{text}\n")
            );
        }
    }

    #[test]
    fn requests_are_what_they_say_and_nothing_else() {
        check_request(r#"{"request":"stats"}"#, Some(Request::Stats {}));
        let freeze = Request::Freeze { seconds: 60 };
        check_request(r#"{"request":"freeze","seconds":60}"#, Some(freeze));
        let rekey = Request::Rekey {
            key_follows: true,
            kek_epoch: Some(3),
            reseal: false,
        };
        let text = r#"{"request":"rekey","key_follows":true,"kek_epoch":3,"reseal":false}"#;
        check_request(text, Some(rekey));
        for wrong in [
            "",
            "{}",
            "stats",
            r#"{"request":"format"}"#,
            r#"{"request":"stats","more":1}"#,
            r#"{"request":"stats"}{"request":"thaw"}"#,
            r#"{"request":"freeze"}"#,
            r#"{"request":"freeze","seconds":0}"#,
            r#"{"request":"freeze","seconds":3601}"#,
            r#"{"request":"freeze","seconds":-1}"#,
            r#"{"request":"rekey","key_follows":true}"#,
        ] {
            check_request(wrong, None);
        }
    }

    #[track_caller]
    fn check_reply(reply: &Reply, text: &str) {
        assert_eq!(String::from_utf8(line(reply)).unwrap(), format!("{text}\n"));
        assert_eq!(&serde_json::from_str::<Reply>(text).unwrap(), reply);
    }

    #[test]
    fn replies_read_as_they_were_written() {
        check_reply(&Reply::Done {}, r#"{"done":{}}"#);
        let progress = Happening::Progress {
            done_bytes: 1,
            total_bytes: 2,
        };
        let text = r#"{"progress":{"done_bytes":1,"total_bytes":2}}"#;
        check_reply(&Reply::Happening(progress), text);
        let figures = Figures::from([
            ("read_bytes".into(), Figure::Count(7)),
            ("read_only".into(), Figure::Flag(false)),
        ]);
        let text = r#"{"stats":{"read_bytes":7,"read_only":false}}"#;
        check_reply(&Reply::Stats(figures), text);
        let failed = Failed::from(&ControlError::NotFrozen);
        let text = r#"{"failed":{"code":"fs.not_frozen","exit":45,"message":"the volume is not frozen: it was not, or its time was over"}}"#;
        check_reply(&Reply::Failed(failed), text);
    }
}
