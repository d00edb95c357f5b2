//! The moment when all callers start.

use std::sync::OnceLock;
use std::time::Instant;

use tokio::sync::Barrier;

use crate::cpu;

/// Holds callers until all of them are connected.
pub struct Start {
    ready: Barrier,
    began: OnceLock<Began>,
}

/// The time of the start and the CPU time used before it.
#[derive(Clone, Copy)]
pub struct Began {
    pub time: Instant,
    pub cpu_seconds: f64,
}

impl Start {
    pub fn new(callers: usize) -> Self {
        Self {
            ready: Barrier::new(callers),
            began: OnceLock::new(),
        }
    }

    /// Waits for all callers; the first to continue sets the time.
    pub async fn all(&self) -> Began {
        self.ready.wait().await;
        *self.began.get_or_init(|| Began {
            time: Instant::now(),
            cpu_seconds: cpu::seconds(),
        })
    }

    /// When all started, once they have.
    pub fn began(&self) -> Option<Began> {
        self.began.get().copied()
    }
}
