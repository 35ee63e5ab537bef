//! Core: attacks on whole objects.

use super::{ID, Objects, SIBLING, Verdict, kind_of, scene, stranger};
use crate::store::ObjectName;

#[test]
fn t23_an_object_that_is_gone_cut_or_longer_hurts_what_was_in_it() {
    let scene = scene();
    let (mut refused, mut hurt, mut whole) = (0, 0, 0);
    for (name, bytes) in &scene.newest.0 {
        let mut rows: Vec<(&str, Option<Vec<u8>>)> = vec![("gone", None)];
        for (how, len) in [
            ("empty", 0),
            ("cut to its half", bytes.len() / 2),
            ("a byte short", bytes.len() - 1),
        ] {
            rows.push((how, Some(bytes[..len].to_vec())));
        }
        let segment_only = kind_of(*name).is_some();
        if segment_only {
            // A superblock has one length; what is behind it makes it none, as in the rows above.
            let longer = bytes.iter().copied().chain([0xa5; 5000]).collect();
            rows.push(("longer", Some(longer)));
        }
        for (how, bytes) in rows {
            let mut bent = scene.objects();
            match bytes {
                Some(bytes) => bent.insert(*name, bytes),
                None => bent.remove(name),
            };
            match scene.check(&bent, &format!("{name} is {how}")) {
                Verdict::Refused => refused += 1,
                Verdict::Shows(_, files) if files.is_empty() => whole += 1,
                Verdict::Shows(..) => hurt += 1,
            }
        }
    }
    assert!(
        refused >= 5 && hurt >= 5 && whole >= 10,
        "{refused} {hurt} {whole}"
    );
}

#[test]
fn t22_objects_of_one_kind_that_change_places_are_found() {
    let scene = scene();
    let names: Vec<&ObjectName> = scene.newest.0.keys().collect();
    let mut swapped = 0;
    for (i, a) in names.iter().enumerate() {
        for b in &names[i + 1..] {
            if kind_of(**a) == kind_of(**b) {
                let mut bent = scene.objects();
                bent.insert(**a, scene.newest.0[*b].clone());
                bent.insert(**b, scene.newest.0[*a].clone());
                scene.check(&bent, &format!("{a} and {b}"));
                swapped += 1;
            }
        }
    }
    assert!(swapped >= 4, "{swapped}");
}

/// Objects of another volume under the same key, and of another one under the same name.
#[test]
fn t27_an_object_of_another_volume_is_never_taken_for_ours() {
    let scene = scene();
    for foreign in [stranger(SIBLING), stranger(ID)] {
        for name in scene.newest.0.keys() {
            let Some((_, bytes)) = foreign.iter().find(|(n, _)| kind_of(**n) == kind_of(*name))
            else {
                panic!("no object like {name}")
            };
            let mut bent = scene.objects();
            bent.insert(*name, bytes.clone());
            if kind_of(*name).is_some() {
                scene.check(&bent, &format!("{name} is another volume's"));
            } else {
                judge_foreign_slot(&scene, &bent, name);
            }
        }
    }
}

/// A slot with another volume's superblock never counts, unless that has our key and id and is the
/// newer one; what it names is not there then.
fn judge_foreign_slot(scene: &super::Scene, bent: &Objects, name: &ObjectName) {
    let got = scene.judge(bent, &format!("{name} is another volume's"));
    let intact = Verdict::Shows(0, Default::default());
    assert!(got == intact || got == Verdict::Refused, "{name}: {got:?}");
}
