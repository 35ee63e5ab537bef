//! Core: the demo's steps on the encrypted volume.

use std::path::{Path, PathBuf};

use super::{Outcome, Stage, boot};
use crate::process::RunningAgent;

/// A text that nothing else contains.
const CANARY: &[u8] = b"the plaintext canary of the demo sings in the mine";
/// A name that nothing else has.
const NAME: &str = "ledger-of-the-canary.txt";
const FOLDER: &str = "a-folder-with-a-telling-name";
/// Bytes of the large file.
const LARGE_BYTES: usize = 8 * 1024 * 1024;

/// Writes files and searches the store for their contents and names.
pub(super) async fn write(stage: &mut Stage) -> Outcome {
    let agent = stage
        .agent_a
        .as_ref()
        .ok_or("pod-a's agent is not running")?;
    let volume = agent.volume();
    let store = stage.pod_a.store();
    blocking(move || {
        write_files(&volume)?;
        let searched = search(&store)?;
        Ok(format!(
            "{searched} stored bytes searched for 3 contents and names: nothing found"
        ))
    })
    .await
}

/// Stops the agent, starts it again, and reads everything back.
pub(super) async fn remount(stage: &mut Stage) -> Outcome {
    restart(stage).await?;
    let agent = stage
        .agent_a
        .as_ref()
        .ok_or("pod-a's agent is not running")?;
    let volume = agent.volume();
    blocking(move || {
        let text = std::fs::read(volume.join(FOLDER).join(NAME))?;
        let large = std::fs::read(volume.join("large"))?;
        if text != CANARY || large != large_file() {
            return Err("a file came back with other contents".into());
        }
        Ok(format!(
            "{} bytes in 2 files, equal to what was written",
            text.len() + large.len()
        ))
    })
    .await
}

/// Flips one byte in the middle of the largest stored object, and expects an error: at the mount,
/// or when the file is read.
pub(super) async fn flip(stage: &mut Stage) -> Outcome {
    end(stage.agent_a.take()).await?;
    let store = stage.pod_a.store();
    let flipped = blocking(move || flip_in_largest(&store)).await?;
    let started = boot(&stage.pod_a, &stage.key_id, &mut stage.boots).await;
    let agent = match started {
        Ok(agent) => agent,
        Err(error) if error.to_string().contains("fs.tampered") => {
            return Ok(format!(
                "{flipped}\nthe agent refuses to mount: fs.tampered"
            ));
        }
        Err(error) => return Err(error),
    };
    let volume = agent.volume();
    let read = blocking(move || Ok(std::fs::read(volume.join("large")))).await?;
    stage.agent_a = Some(agent);
    match read {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BADMSG.raw_os_error()) => {
            Ok(format!("{flipped}\nreading the file: {error}"))
        }
        Err(error) => Err(format!("reading failed with another error: {error}").into()),
        Ok(_) => Err("the damaged file was read without an error".into()),
    }
}

async fn restart(stage: &mut Stage) -> Outcome<()> {
    end(stage.agent_a.take()).await?;
    stage.agent_a = Some(boot(&stage.pod_a, &stage.key_id, &mut stage.boots).await?);
    Ok(())
}

async fn end(agent: Option<RunningAgent>) -> Outcome<()> {
    let ended = agent
        .ok_or("pod-a's agent is not running")?
        .terminate()
        .await?;
    if ended.code == Some(0) {
        Ok(())
    } else {
        Err(format!("{ended:?}").into())
    }
}

fn write_files(volume: &Path) -> Outcome<()> {
    let folder = volume.join(FOLDER);
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join(NAME), CANARY)?;
    std::fs::write(volume.join("large"), large_file())?;
    std::fs::File::open(volume.join("large"))?.sync_all()?;
    std::fs::File::open(folder.join(NAME))?.sync_all()?;
    Ok(())
}

/// The canary over and over: if one block of it were stored in clear, the search would find it.
fn large_file() -> Vec<u8> {
    CANARY.iter().copied().cycle().take(LARGE_BYTES).collect()
}

/// Searches every object; returns how many bytes that were.
fn search(store: &Path) -> Outcome<usize> {
    let mut searched = 0;
    for object in objects(store)? {
        let bytes = std::fs::read(&object)?;
        for secret in [
            CANARY.get(..24).unwrap_or(CANARY),
            NAME.as_bytes(),
            FOLDER.as_bytes(),
        ] {
            if bytes.windows(secret.len()).any(|window| window == secret) {
                return Err(format!("plaintext in {}", object.display()).into());
            }
        }
        searched += bytes.len();
    }
    if searched < LARGE_BYTES {
        return Err(format!("only {searched} bytes are stored: the search proves nothing").into());
    }
    Ok(searched)
}

fn flip_in_largest(store: &Path) -> Outcome {
    let mut objects = objects(store)?;
    objects.sort_by_key(|object| std::fs::metadata(object).map_or(0, |data| data.len()));
    let object = objects.pop().ok_or("the store is empty")?;
    let mut bytes = std::fs::read(&object)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).ok_or("the largest object is empty")? ^= 1;
    std::fs::write(&object, bytes)?;
    Ok(format!(
        "bit 0 of byte {middle} of the largest object flipped"
    ))
}

fn objects(store: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// File operations on a FUSE mount block, and must not hold up the tasks that serve the cloud.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Outcome<T> {
    tokio::task::spawn_blocking(work).await?
}
