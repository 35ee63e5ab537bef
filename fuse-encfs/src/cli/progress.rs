//! Edge: how far a long task is, for a person at a terminal; and ending one by a signal.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(200);
const CELLS: u64 = 30;

/// A line on standard error, when that is a terminal.
pub(super) struct Progress {
    what: &'static str,
    is_shown: bool,
    drawn: Option<Instant>,
    ended: Arc<AtomicBool>,
}

impl Progress {
    /// Nothing is drawn as yet. From now on SIGINT and SIGTERM end the task, not the program.
    pub(super) fn new(what: &'static str) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // A second one ends the program.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&ended))?;
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
        }
        Ok(Self {
            what,
            is_shown: io::stderr().is_terminal(),
            drawn: None,
            ended,
        })
    }

    /// So many of so many bytes are done. Says whether to go on.
    pub(super) fn tell(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        if self.ended.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        let is_due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= EVERY);
        if self.is_shown && is_due {
            self.drawn = Some(Instant::now());
            // Who cannot be told of progress needs none.
            let _ = write!(io::stderr(), "\r{}", line(self.what, done, total));
        }
        ControlFlow::Continue(())
    }

    /// Clears the line.
    pub(super) fn end(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn line(what: &str, done: u64, total: u64) -> String {
    let of = |n: u64| {
        let part = u128::from(done.min(total)) * u128::from(n) / u128::from(total.max(1));
        u64::try_from(part).unwrap_or(n)
    };
    let filled = usize::try_from(of(CELLS)).unwrap_or(0);
    let (full, cells) = ("#".repeat(filled), 30);
    format!(
        "{what} [{full:<cells$}] {:>3} %  {} of {} MiB",
        of(100),
        done >> 20,
        total >> 20
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(done: u64, total: u64, want: &str) {
        assert_eq!(line("checking", done, total), want);
    }

    #[test]
    fn a_line_shows_how_far_a_task_is() {
        let empty = " ".repeat(30);
        check(0, 0, &format!("checking [{empty}]   0 %  0 of 0 MiB"));
        let half = "#".repeat(15) + &" ".repeat(15);
        check(
            5 << 20,
            10 << 20,
            &format!("checking [{half}]  50 %  5 of 10 MiB"),
        );
        let full = "#".repeat(30);
        check(
            10 << 20,
            10 << 20,
            &format!("checking [{full}] 100 %  10 of 10 MiB"),
        );
        check(
            u64::MAX,
            1 << 20,
            &format!("checking [{full}] 100 %  17592186044415 of 1 MiB"),
        );
    }
}
