//! Edge: getting a volume back with its owner's key.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use keys::{KekEpoch, VolumeId};

use super::Failure;
use super::key::{Key, read_master_key};
use crate::crypto::OwnerKey;
use crate::rekey::{change_kek, recovery_copy};
use crate::superblock::{NewKek, UnlockWith};
use crate::volume::claimed_volume_id;

#[derive(Debug, Args)]
pub(super) struct RecoveryCopy {
    /// Directory that holds the volume.
    store: PathBuf,
    /// Write the encrypted master key to this file, which must not exist.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Recover {
    /// Directory that holds the volume.
    store: PathBuf,
    /// File with the volume's master key, as the owner has decrypted it: exactly 32 bytes, or 64
    /// hexadecimal digits and at most one newline.
    #[arg(long, value_name = "FILE")]
    volume_master_key_file: PathBuf,
    /// The key of the volume from now on.
    #[command(flatten)]
    key: Key,
    /// Epoch of that key.
    #[arg(long, value_name = "N", default_value_t = 0)]
    kek_epoch: u32,
    /// Id that the volume must have: 32 hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    volume_id: Option<VolumeId>,
}

/// Reads an owner's public key.
pub(super) fn read_owner(path: &PathBuf) -> Result<OwnerKey, Failure> {
    Ok(OwnerKey::from_pem(&fs::read(path)?)?)
}

/// Shows who can recover a volume, and hands out what they need.
pub(super) fn show_copy(args: &RecoveryCopy) -> Result<(), Failure> {
    let copy = recovery_copy(&args.store)?;
    let copy = copy.ok_or_else(|| Failure::Usage("the volume was made without an owner".into()))?;
    if let Some(path) = &args.output {
        fs::File::create_new(path)?.write_all(&copy.encrypted)?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "volume      {}", copy.volume)?;
    writeln!(out, "key epoch   {}", copy.vmk_epoch)?;
    write!(out, "owner       SHA-256 ")?;
    for byte in copy.owner_sha256 {
        write!(out, "{byte:02x}")?;
    }
    writeln!(out)?;
    Ok(())
}

/// Wraps a volume's master key with a new key.
pub(super) fn recover(args: &Recover) -> Result<(), Failure> {
    let vmk = read_master_key(&args.volume_master_key_file)?;
    let kek = args.key.read()?;
    let new = NewKek {
        kek: &kek,
        epoch: KekEpoch(args.kek_epoch),
    };
    let expected = match args.volume_id {
        Some(id) => id,
        None => claimed_volume_id(&args.store)?,
    };
    Ok(change_kek(
        &args.store,
        UnlockWith::Vmk(&vmk),
        new,
        expected,
    )?)
}
