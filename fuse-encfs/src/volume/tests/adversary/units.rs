//! Core: attacks on single units.

use super::{Kind, Verdict, begin, kind_of, scene};

/// A way to alter the bytes of one unit.
type Alter = (&'static str, fn(&mut [u8]));

const ALTERATIONS: [Alter; 4] = [
    ("its first byte is another", |unit| unit[0] ^= 1),
    ("a byte in its middle is another", |unit| {
        unit[unit.len() / 2] ^= 0x80;
    }),
    ("its last byte is another", |unit| {
        *unit.last_mut().unwrap() ^= 1;
    }),
    // As the address was before the unit was written.
    ("it was never written", |unit| unit.fill(0)),
];

#[test]
fn t21_an_altered_unit_of_any_kind_hurts_what_it_holds_and_shows_nothing_else() {
    let scene = scene();
    let (mut refused, mut hurt) = (0, 0);
    for unit in &scene.units {
        for (how, alter) in ALTERATIONS {
            let mut bent = scene.objects();
            alter(&mut bent.get_mut(&unit.object).unwrap()[unit.range.clone()]);
            match scene.check(&bent, &format!("{unit:?}: {how}")) {
                Verdict::Refused => refused += 1,
                Verdict::Shows(_, files) => hurt += usize::from(!files.is_empty()),
            }
        }
    }
    // Each kind was there, and there are nodes without which some files are whole.
    for kind in [
        Kind::Chunk,
        Kind::ChunkInLog,
        Kind::ChunkOfAttribute,
        Kind::Frame,
        Kind::Node,
        Kind::OldFrame,
    ] {
        assert!(scene.of(kind).count() > 1, "{kind:?}");
    }
    let chunks = scene.units.iter().filter(|unit| unit.file.is_some());
    let hurt_by_nodes = hurt - ALTERATIONS.len() * chunks.count();
    assert!(
        refused > 10 && hurt_by_nodes > 0,
        "{refused} {hurt_by_nodes}"
    );
}

#[test]
fn t22_units_of_one_kind_that_change_places_are_found() {
    let scene = scene();
    let mut swapped = 0;
    for (i, a) in scene.units.iter().enumerate() {
        let same = |b: &&super::Unit| b.kind == a.kind && b.range.len() == a.range.len();
        // The next of its kind stands for all: an address is wrong or right.
        let Some(b) = scene.units[i + 1..].iter().find(same) else {
            continue;
        };
        let mut bent = scene.objects();
        let (of_a, of_b) = (
            scene.newest.0[&a.object][a.range.clone()].to_vec(),
            scene.newest.0[&b.object][b.range.clone()].to_vec(),
        );
        bent.get_mut(&a.object).unwrap()[a.range.clone()].copy_from_slice(&of_b);
        bent.get_mut(&b.object).unwrap()[b.range.clone()].copy_from_slice(&of_a);
        scene.check(&bent, &format!("{a:?} and {b:?}"));
        // And one of them twice.
        let mut bent = scene.objects();
        bent.get_mut(&a.object).unwrap()[a.range.clone()].copy_from_slice(&of_b);
        scene.check(&bent, &format!("{b:?} in the place of {a:?} too"));
        swapped += 1;
    }
    assert!(swapped > 15, "{swapped}");
}

/// Commits that the adversary has seen, put behind the end of the log or elsewhere in it.
#[test]
fn t22_a_frame_of_the_log_counts_at_its_own_place_alone() {
    let scene = scene();
    let frames: Vec<_> = scene.of(Kind::Frame).collect();
    let last = frames.last().unwrap();
    let end = last.range.end.next_multiple_of(512);
    for frame in frames.iter().copied().chain(scene.of(Kind::OldFrame)) {
        let bytes = scene.newest.0[&frame.object][frame.range.clone()].to_vec();
        let mut bent = scene.objects();
        let log = bent.get_mut(&last.object).unwrap();
        log.resize(log.len().max(end + bytes.len()), 0);
        log[end..end + bytes.len()].copy_from_slice(&bytes);
        let got = scene.check(&bent, &format!("{frame:?} once more behind the end"));
        assert_eq!(got, Verdict::Shows(0, Default::default()));
    }
}

/// No mount reads what stands in front of a segment's units, for what a segment is says the
/// pointer to it.
#[test]
fn t21_an_altered_segment_header_changes_nothing() {
    let scene = scene();
    let mut bent = scene.objects();
    let segments = bent
        .iter_mut()
        .filter(|(name, _)| kind_of(**name).is_some());
    let mut count = 0;
    for (_, bytes) in segments {
        bytes[..begin()].fill(0xa5);
        count += 1;
    }
    let got = scene.check(&bent, "all headers");
    assert!(count >= 5 && got == Verdict::Shows(0, Default::default()));
}
