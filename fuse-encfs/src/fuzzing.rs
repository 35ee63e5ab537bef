//! Core: what is let loose on every parser of the crate, and on a whole volume. For tests.
//!
//! A target takes any bytes and panics when something does not hold. Two engines run them:
//! `make fuzz` (libFuzzer, fuzz/fuzz.rs, built with `--cfg fuzzing`), and here, in every run of the
//! tests, the seeds, what small damage makes of them, and every input that was ever a crash.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a target that cannot go on must stop; this is no part of the crate's interface"
)]

mod parsers;
mod seeds;
mod volume;

use crate::{anchor, cli, control, map, store};

/// Something to be fuzzed.
pub struct Target {
    /// Its name, and that of its folder in fuzz/regressions.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with: each is accepted, or nearly.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, run, seeds }
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("acl", parsers::acl, parsers::acl_seeds),
    target(
        "anchor_record",
        anchor::fuzzing::record,
        anchor::fuzzing::seeds,
    ),
    target("block_copy", store::block::fuzzing::copy, || {
        let [_, _, copies] = store::block::fuzzing::seeds();
        copies
    }),
    target("block_header", store::block::fuzzing::header, || {
        let [headers, ..] = store::block::fuzzing::seeds();
        headers
    }),
    target("block_table", store::block::fuzzing::table, || {
        let [_, tables, _] = store::block::fuzzing::seeds();
        tables
    }),
    target("commit", parsers::commit, seeds::commits),
    target(
        "control",
        control::fuzzing::message,
        control::fuzzing::seeds,
    ),
    target("extent", parsers::extent, seeds::extents),
    target("frame_head", parsers::frame_head, seeds::frame_heads),
    target("fs_operations", volume::operations, volume::operation_seeds),
    target(
        "hostile_store",
        volume::hostile_store,
        volume::hostile_seeds,
    ),
    target("item", parsers::item, seeds::items),
    target("key_file", cli::fuzzing::key_file, cli::fuzzing::seeds),
    target("node", map::fuzzing::node, seeds::nodes),
    target(
        "segment_header",
        parsers::segment_header,
        seeds::segment_headers,
    ),
    target("superblock", parsers::superblock, seeds::superblocks),
    target("superblock_body", parsers::superblock_body, seeds::bodies),
    target("xattr", parsers::xattr, parsers::xattr_seeds),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Inputs made of one seed at most.
    const DAMAGED_MAX: usize = 100;
    /// As many for what opens a volume with each.
    const DAMAGED_MAX_WHOLE: usize = 4;

    fn named(name: &str) -> &'static Target {
        TARGETS.iter().find(|target| target.name == name).unwrap()
    }

    /// Each input cut off, and with a byte changed, at places all over it.
    fn damaged(seed: &[u8], max: usize) -> impl Iterator<Item = Vec<u8>> {
        let step = (2 * seed.len()).div_ceil(max).max(1);
        (0..seed.len()).step_by(step).flat_map(move |at| {
            let mut changed = seed.to_vec();
            changed[at] ^= 1 << (at % 8);
            [seed[..at].to_vec(), changed]
        })
    }

    #[test]
    fn seeds_and_what_damage_makes_of_them_hold() {
        for target in TARGETS {
            let is_whole = matches!(target.name, "fs_operations" | "hostile_store");
            let max = if is_whole {
                DAMAGED_MAX_WHOLE
            } else {
                DAMAGED_MAX
            };
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            (target.run)(&[]);
            for seed in &seeds {
                (target.run)(seed);
                damaged(seed, max).for_each(|input| (target.run)(&input));
            }
        }
    }

    /// Every input that was a crash is kept in the folder of its target.
    #[test]
    fn what_was_once_a_crash_holds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions");
        for target in fs::read_dir(folder).unwrap() {
            let target = target.unwrap();
            if !target.file_type().unwrap().is_dir() {
                continue;
            }
            let name = target.file_name().into_string().unwrap();
            for input in fs::read_dir(target.path()).unwrap() {
                (named(&name).run)(&fs::read(input.unwrap().path()).unwrap());
            }
        }
    }

    /// The seeds are really those of a volume: each parser gets some that it takes.
    #[test]
    fn seeds_are_accepted_by_the_parsers_that_they_are_for() {
        use crate::format::{Body, ClearPart, SegmentHeader, parse_commit, parse_node};

        assert!(
            seeds::commits()
                .iter()
                .all(|seed| parse_commit(seed).is_ok())
        );
        assert!(
            seeds::nodes()
                .iter()
                .all(|seed| parse_node(&seed[1..], seed[0]).is_ok())
        );
        assert!(
            seeds::superblocks()
                .iter()
                .all(|seed| ClearPart::parse(seed).is_ok())
        );
        assert!(
            seeds::segment_headers()
                .iter()
                .all(|seed| SegmentHeader::parse(seed).is_ok())
        );
        let slots = |seed: &Vec<u8>| (0..2).any(|slot| Body::parse(seed, slot).is_ok());
        assert!(seeds::bodies().iter().all(slots));
        for some in [
            seeds::commits(),
            seeds::nodes(),
            seeds::bodies(),
            seeds::items(),
        ] {
            assert!(some.len() >= 3);
        }
    }
}
