//! Core: What comes over the control socket, from any bytes.
#![allow(clippy::unwrap_used, reason = "a target that cannot go on must stop")]

use super::protocol::{Reply, Request, line};

/// A line as a request and as a reply: what is understood is understood the same way again.
pub(crate) fn message(input: &[u8]) {
    if let Ok(request) = Request::parse(input) {
        assert_eq!(Request::parse(&line(&request)).unwrap(), request);
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(input) {
        let again: Reply = serde_json::from_slice(&line(&reply)).unwrap();
        assert_eq!(again, reply);
    }
}

/// What the target begins with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"request":"about"}"#,
        r#"{"request":"checkpoint"}"#,
        r#"{"request":"freeze","seconds":60}"#,
        r#"{"request":"rekey","key_follows":true,"kek_epoch":3,"reseal":false}"#,
        r#"{"request":"scrub"}"#,
        r#"{"request":"stats"}"#,
        r#"{"request":"thaw"}"#,
        r#"{"done":{}}"#,
        r#"{"about":{"volume":"00","mountpoint":"/mnt","pid":1}}"#,
        r#"{"progress":{"done_bytes":1,"total_bytes":2}}"#,
        r#"{"damaged":{"file":"/a"}}"#,
        r#"{"stats":{"read_bytes":7,"read_only":false,"word":"a"}}"#,
        r#"{"scrubbed":{"checked_bytes":8192,"damaged_files":1,"complete":true}}"#,
        r#"{"failed":{"code":"fs.not_frozen","exit":45,"message":"no"}}"#,
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
