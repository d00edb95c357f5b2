//! The CPU time of this process.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU seconds of all threads since the process started.
pub fn seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let whole = Duration::from_secs(time.tv_sec.unsigned_abs());
    (whole + Duration::from_nanos(time.tv_nsec.unsigned_abs())).as_secs_f64()
}
