//! What the kernel says of this process, under the names that all Prometheus clients use.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::{Samples, Value};
use crate::metrics::table;

/// `started`: when the counters began, which is when this image of the process did.
pub(super) fn read(started: SystemTime) -> Vec<Samples> {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "104 days are exact to a nanosecond")]
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut samples = vec![
        Samples::single(&table::CPU, Value::Real(cpu)),
        Samples::single(&table::START, Value::Real(started)),
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key| field(&status, key).map(|kib| Value::Whole(kib * 1024));
    let sizes = [(&table::RESIDENT, kib("VmRSS")), (&table::VIRTUAL, kib("VmSize"))];
    let threads = (&table::THREADS, field(&status, "Threads").map(Value::Whole));
    // One of them is the folder's own.
    let files = fs::read_dir("/proc/self/fd").ok().map(|files| Value::from(files.count().saturating_sub(1)));
    let found = sizes.into_iter().chain([threads, (&table::OPEN_FDS, files)]);
    samples.extend(found.filter_map(|(metric, value)| Some(Samples::single(metric, value?))));
    samples
}

/// The number in a line like `VmRSS:     8412 kB`.
fn field(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_size_and_files() {
        let samples = read(SystemTime::now());
        let of =
            |metric| samples.iter().find(|samples| samples.metric == metric).map(|found| found.rows[0].1);
        for metric in
            [&table::CPU, &table::RESIDENT, &table::VIRTUAL, &table::START, &table::OPEN_FDS, &table::THREADS]
        {
            let positive = match of(metric) {
                Some(Value::Whole(value)) => value > 0,
                Some(Value::Real(value)) => value > 0.0,
                None => false,
            };
            assert!(positive, "{metric:?}");
        }
    }

    #[test]
    fn a_line_of_status_is_read_by_its_whole_key() {
        let status = "VmRSSx:\t1 kB\nVmRSS:\t  8412 kB\nThreads:\t3\n";
        assert_eq!((field(status, "VmRSS"), field(status, "Threads")), (Some(8412), Some(3)));
        assert_eq!(field(status, "VmSize"), None);
    }
}
