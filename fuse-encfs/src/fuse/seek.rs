//! Edge: where a file has data and where holes.
//!
//! The kernel (seen on 6.18) asks for both without having written back what it holds of the file,
//! so an answer from the volume alone would hide data that only the kernel has. It has to be made
//! to write back first, and whoever makes it so waits until this process has taken the data in:
//!
//! - no thread that serves requests may do it: all of them could end up waiting for one another;
//! - nor may a thread that holds the FUSE device. It waits in a way that no signal ends, and were
//!   the process killed meanwhile, the device would stay open in its hands and nobody ever learn
//!   that there is no server any more.
//!
//! So there are two threads: one that answers, and one without the device that only writes back.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::{io, thread};

use fuser::{Errno, INodeNo, ReplyLseek};

use super::errno;
use crate::error::FsError;
use crate::format::Ino;
use crate::fs::{Fs, Seek};
use crate::sys;

/// What lseek(2) looks for.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Answers seeks, with threads that start at the first one.
pub(crate) struct Seeker {
    fs: Arc<Fs>,
    mount: MountPlace,
    questions: OnceLock<Option<Sender<Question>>>,
}

/// Where the mount is that the kernel writes back.
#[derive(Debug, Clone)]
pub(crate) struct MountPlace {
    pub(crate) path: PathBuf,
    /// Minor number of its device, by which it is told from what may be mounted over it.
    pub(crate) device: Option<u32>,
}

#[derive(Debug)]
struct Question {
    ino: INodeNo,
    offset: u64,
    what: Seek,
    reply: ReplyLseek,
}

impl Seeker {
    /// One for a filesystem that is mounted at `mount`.
    pub(crate) fn new(fs: Arc<Fs>, mount: MountPlace) -> Self {
        Self {
            fs,
            mount,
            questions: OnceLock::new(),
        }
    }

    /// Answers one seek, later and from another thread.
    pub(super) fn answer(&self, ino: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let question = Question {
            ino,
            offset,
            what,
            reply,
        };
        let unanswered = match self.questions.get_or_init(|| self.start()) {
            Some(questions) => questions.send(question).err().map(|e| e.0),
            None => Some(question),
        };
        if let Some(question) = unanswered {
            question.give_up();
        }
    }

    fn start(&self) -> Option<Sender<Question>> {
        let started = start(Arc::clone(&self.fs), self.mount.clone());
        started
            .inspect_err(|e| tracing::warn!(error = %e, "holes of files are not told from data"))
            .ok()
    }
}

impl std::fmt::Debug for Seeker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeker")
            .field("mount", &self.mount)
            .finish_non_exhaustive()
    }
}

impl Question {
    /// Lets the kernel answer this and all later ones itself: all of a file is data to it.
    fn give_up(self) {
        self.reply.error(Errno::ENOSYS);
    }

    fn answer(self, fs: &Fs) {
        match fs.seek(Ino(self.ino.0), self.offset, self.what) {
            Ok(at) => match i64::try_from(at) {
                Ok(at) => self.reply.offset(at),
                Err(_) => self.reply.error(errno(&FsError::TooLarge)),
            },
            Err(e) => self.reply.error(errno(&e)),
        }
    }
}

fn start(fs: Arc<Fs>, mount: MountPlace) -> io::Result<Sender<Question>> {
    let (ask, asked) = channel::<Question>();
    let (order, orders) = channel();
    let (say, said) = channel();
    thread::Builder::new()
        .name("encfs-seek-back".into())
        .spawn(move || write_back_as_asked(&mount, &orders, &say))?;
    thread::Builder::new()
        .name("encfs-seek".into())
        .spawn(move || {
            for question in asked {
                let written = order.send(question.ino.0).is_ok() && said.recv() == Ok(true);
                if written {
                    question.answer(&fs);
                } else {
                    question.give_up();
                }
            }
        })?;
    Ok(ask)
}

/// The work of the thread without the device: writes back the inodes of `orders` and says how it
/// went. It logs nothing, as it has no standard error.
fn write_back_as_asked(mount: &MountPlace, orders: &Receiver<u64>, say: &Sender<bool>) {
    let is_ready = sys::drop_all_descriptors_of_thread().is_ok();
    for node in orders {
        let written = match mount.device {
            Some(device) if is_ready => sys::write_file_back(&mount.path, device, node).ok(),
            _ => None,
        };
        if say.send(written.is_some()).is_err() {
            return;
        }
        // Only now: to close a file waits for who seeks in it, and he waits for the answer.
        drop(written);
    }
}
