//! Core: any operation of the model.

use proptest::prelude::*;

use crate::fs::RenameRule;
use crate::fs::model::Op;

pub(super) fn any_op() -> impl Strategy<Value = Op> {
    let path = || prop::collection::vec(0..3_u8, 1..=3);
    // Around chunk borders things go wrong first.
    let offset = || {
        prop_oneof![
            0..20_000_u32,
            // Up to 2 KiB a file lives in its inode's record.
            2040..2056_u32,
            (0..5_u32).prop_map(|n| n * 4096),
            (1..5_u32).prop_map(|n| n * 4096 - 1)
        ]
    };
    let rule = prop_oneof![
        Just(RenameRule::Replace),
        Just(RenameRule::NoReplace),
        Just(RenameRule::Exchange),
        Just(RenameRule::Whiteout)
    ];
    // Up to 1 KiB a value lives beside its name.
    let value_len = prop_oneof![0..100_u32, 1020..1030_u32, 3000..9000_u32];
    let xattr = (path(), 0..3_u8, value_len, any::<u8>());
    let copy = (path(), offset(), path(), offset(), 0..9000_u32);
    let range = || (path(), offset(), 1..9000_u32, any::<bool>());
    let write = (path(), offset(), 0..9000_u32, any::<u8>());
    prop_oneof![
        4 => path().prop_map(Op::Create),
        3 => path().prop_map(Op::Mkdir),
        8 => write.prop_map(|(path, offset, len, seed)| Op::Write { path, offset, len, seed }),
        3 => (path(), offset()).prop_map(|(path, size)| Op::Truncate(path, size)),
        2 => (path(), offset(), 0..9000_u32).prop_map(|(path, at, n)| Op::Punch(path, at, n)),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        4 => (path(), path(), rule).prop_map(|(from, to, rule)| Op::Rename(from, to, rule)),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => (path(), any::<u8>()).prop_map(|(path, target)| Op::Symlink(path, target)),
        1 => (path(), 0..0o1000_u16).prop_map(|(path, perm)| Op::Chmod(path, perm)),
        1 => path().prop_map(Op::Fsync),
        2 => range().prop_map(|(path, at, n, grow)| Op::Allocate(path, at, n, grow)),
        2 => range().prop_map(|(path, at, n, grow)| Op::Zero(path, at, n, grow)),
        4 => copy.prop_map(|(from, at, to, there, len)| Op::Copy { from: (from, at), to: (to, there), len }),
        3 => xattr.prop_map(|(path, name, len, seed)| Op::SetXattr { path, name, len, seed }),
        1 => (path(), 0..3_u8).prop_map(|(path, name)| Op::RemoveXattr(path, name)),
        1 => (path(), -99..99_i64).prop_map(|(path, secs)| Op::SetMtime(path, secs)),
        2 => path().prop_map(Op::Hold),
        2 => (0..9000_u32, any::<u8>()).prop_map(|(len, seed)| Op::WriteHeld(len, seed)),
        1 => Just(Op::Release),
        1 => Just(Op::Clean),
        1 => Just(Op::Remount),
        1 => Just(Op::Crash),
    ]
}
