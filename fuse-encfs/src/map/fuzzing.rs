//! Core: The nodes of the tree, from any bytes.
#![allow(clippy::unwrap_used, reason = "a target that cannot go on must stop")]

use super::entries::Entries;
use super::node::{Bounds, Node};
use crate::format::{NodePointer, SegmentId, parse_node};

/// A level and the plaintext of a node: what is accepted is in order, within its bounds, and
/// written again as it was.
pub(crate) fn node(input: &[u8]) {
    let Some((level, plaintext)) = input.split_first() else {
        return;
    };
    let level = level % 4;
    let entries = Entries::parse(plaintext, level);
    let parsed = parse_node(plaintext, level);
    assert_eq!(entries.is_ok(), parsed.is_ok());
    let (Ok(entries), Ok(parsed)) = (entries, parsed) else {
        return;
    };
    assert!(plaintext.starts_with(entries.encode(level).get(..entries.node_len()).unwrap()));
    assert_eq!(entries.count(), parsed.len());
    for (i, (key, value)) in parsed.iter().enumerate() {
        assert_eq!((entries.key(i), entries.value(i)), (*key, *value));
    }
    assert!(parsed.is_sorted_by(|a, b| a.0 < b.0));

    let pointer = NodePointer {
        segment: SegmentId(1),
        offset: 4096,
        len: 64,
        salt: [0; 8],
    };
    let open = Bounds {
        from: None,
        to: None,
    };
    let Ok(root) = Node::parse(plaintext, &pointer, level, open) else {
        return;
    };
    for (key, _) in &parsed {
        assert!(root.route(key) < root.count().max(1));
    }
    if let [(first, _), .., (last, _)] = parsed.as_slice() {
        let refused = |from, to| {
            let bounds = Bounds { from, to };
            Node::parse(plaintext, &pointer, level, bounds).is_err()
        };
        assert!(!refused(Some(first), None));
        assert!(refused(Some(last), None));
        assert!(refused(None, Some(last)));
    }
}
