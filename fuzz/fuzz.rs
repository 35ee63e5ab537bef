//! Edge: libFuzzer around the fuzz targets of fuse-encfs, all in one program.
//!
//! `fuzz --target=NAME --seeds=DIRECTORY [options of libFuzzer] [corpora]` first writes the
//! target's seeds into the directory; `fuzz --list` prints the names of all. libFuzzer leaves what begins with two dashes to the program.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use fuse_encfs::fuzzing::{self, Target};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let _ = TARGET.set(begin());
    },
    |input: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(input);
        }
    }
);

/// The target that the arguments name, its seeds written.
fn begin() -> &'static Target {
    if std::env::args().any(|argument| argument == "--list") {
        fuzzing::TARGETS
            .iter()
            .for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    let name = argument("--target=").expect("--target=NAME is missing");
    let target = fuzzing::TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("there is no target {name}"));
    if let Some(directory) = argument("--seeds=") {
        let directory = Path::new(&directory);
        fs::create_dir_all(directory).expect("the directory of seeds cannot be made");
        for (i, seed) in (target.seeds)().iter().enumerate() {
            fs::write(directory.join(format!("seed-{i:03}")), seed)
                .expect("a seed cannot be written");
        }
    }
    target
}

fn argument(prefix: &str) -> Option<String> {
    std::env::args().find_map(|argument| argument.strip_prefix(prefix).map(str::to_owned))
}
