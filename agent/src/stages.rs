//! Core: the stages of a start, with the time that each took: what `status` shows and the demo
//! prints.

use std::future::Future;
use std::time::{Duration, Instant};

use runtime::sync::Mutex;
use serde::Serialize;

/// The stages passed so far, in order.
#[derive(Debug)]
pub struct BootStages {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    passed: Vec<Stage>,
    running: Option<&'static str>,
    ready_after: Option<Duration>,
    draining: bool,
}

/// One stage that was passed.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// Stable name.
    pub name: &'static str,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
}

/// The stages as the API shows them.
#[derive(Debug, Clone, Serialize)]
pub struct StagesView {
    /// The stages passed so far, in order.
    pub passed: Vec<Stage>,
    /// The stage that is running now.
    pub running: Option<&'static str>,
    /// From the start of the process to readiness, in milliseconds; null before.
    pub ready_after_ms: Option<f64>,
}

impl BootStages {
    /// Starts the clock now.
    pub fn new() -> Self {
        Self::since(Instant::now())
    }

    /// Stages of a process that started at `start`.
    pub fn since(start: Instant) -> Self {
        Self {
            start,
            state: Mutex::new(State::default()),
        }
    }

    /// Runs `work` as the stage `name`. A stage that fails stays `running` in the view: it is the
    /// one that the start is stuck in. As safe to drop as `work` is.
    pub async fn run<T, E>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let start = Instant::now();
        self.state.lock().running = Some(name);
        tracing::debug!(stage = name, "stage begins");
        let value = work.await?;
        self.note(name, start.elapsed());
        Ok(value)
    }

    /// Notes a stage that ran beside the others.
    pub fn note(&self, name: &'static str, took: Duration) {
        let mut state = self.state.lock();
        state.running = None;
        state.passed.push(Stage {
            name,
            duration_ms: took.as_secs_f64() * 1_000.0,
        });
    }

    /// Notes that the agent is ready, and returns the time since its start.
    pub fn ready(&self) -> Duration {
        let took = self.start.elapsed();
        self.state.lock().ready_after = Some(took);
        took
    }

    /// Notes that the agent is on its way down.
    pub fn drain(&self) {
        self.state.lock().draining = true;
    }

    /// Whether the agent is ready, and not on its way down.
    pub fn is_ready(&self) -> bool {
        let state = self.state.lock();
        state.ready_after.is_some() && !state.draining
    }

    /// A copy for the API.
    pub fn view(&self) -> StagesView {
        let state = self.state.lock();
        StagesView {
            passed: state.passed.clone(),
            running: state.running,
            ready_after_ms: state.ready_after.map(|took| took.as_secs_f64() * 1_000.0),
        }
    }
}

impl Default for BootStages {
    fn default() -> Self {
        Self::new()
    }
}
