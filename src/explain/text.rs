//! Words for people: lines of at most 100 columns, lists of devices in short.

use super::DeviceView;

/// No line is longer where the words allow.
const WIDTH: usize = 100;

/// `text` behind `first`, broken after spaces and commas; further lines begin with as many spaces as `first` is wide.
pub(super) fn wrap(first: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(width(first));
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split_inclusive([' ', ',']) {
        if !is_empty && width(&line) + width(word.trim_end()) > WIDTH {
            lines.push(line.trim_end().to_owned());
            line.clone_from(&indent);
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Rows with each column as wide as its widest cell, two apart; columns named in `right` are numbers.
pub(super) fn table(rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let cell_width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|column| cell_width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if right(column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Devices in short: `GPU 0 5-7`, `0:0-6 1:2`, and `0:3 x4` where one is there four times, as replicas are.
pub(super) fn devices(devices: &[DeviceView]) -> String {
    let runs = runs(devices);
    let whole = runs.iter().any(|run| run.on_gpu.is_none());
    let words: Vec<String> = runs.iter().map(Run::to_text).collect();
    if whole { format!("GPU {}", words.join(" ")) } else { words.join(" ") }
}

/// Neighbours that are there equally often.
struct Run {
    /// `None`: these are whole GPUs.
    on_gpu: Option<u32>,
    first: u32,
    last: u32,
    times: usize,
}

impl Run {
    fn to_text(&self) -> String {
        let gpu = self.on_gpu.map(|gpu| format!("{gpu}:")).unwrap_or_default();
        let last = if self.last > self.first { format!("-{}", self.last) } else { String::new() };
        let times = if self.times > 1 { format!(" x{}", self.times) } else { String::new() };
        format!("{gpu}{}{last}{times}", self.first)
    }
}

fn runs(devices: &[DeviceView]) -> Vec<Run> {
    let key = |device: &DeviceView| match device.mig_device {
        None => (None, device.gpu),
        Some(mig) => (Some(device.gpu), mig),
    };
    let mut runs: Vec<Run> = Vec::new();
    for same in devices.chunk_by(|one, next| key(one) == key(next)) {
        let Some((on_gpu, number)) = same.first().map(key) else { continue };
        match runs.last_mut() {
            Some(run)
                if run.on_gpu == on_gpu
                    && run.times == same.len()
                    && run.last.checked_add(1) == Some(number) =>
            {
                run.last = number;
            }
            _ => runs.push(Run { on_gpu, first: number, last: number, times: same.len() }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(gpu: u32, mig: u32) -> DeviceView {
        DeviceView {
            id: format!("MIG-{gpu}-{mig}"),
            index: format!("{gpu}:{mig}"),
            gpu,
            mig_device: Some(mig),
            profile: None,
            unhealthy: None,
        }
    }

    fn whole(gpu: u32) -> DeviceView {
        DeviceView { mig_device: None, ..slice(gpu, 0) }
    }

    #[test]
    fn neighbours_are_told_as_a_range() {
        assert_eq!(
            devices(&[slice(0, 0), slice(0, 1), slice(0, 2), slice(0, 5), slice(1, 6)]),
            "0:0-2 0:5 1:6"
        );
        assert_eq!(devices(&[whole(0), whole(1), whole(7)]), "GPU 0-1 7");
        assert_eq!(devices(&[]), "");
    }

    #[test]
    fn replicas_are_counted() {
        assert_eq!(
            devices(&[slice(0, 0), slice(0, 0), slice(0, 1), slice(0, 1), slice(0, 2)]),
            "0:0-1 x2 0:2"
        );
    }

    #[test]
    fn long_words_stay_whole_and_lines_hang() {
        let lines = wrap("  x: ", &"word, ".repeat(30));
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() <= WIDTH), "{lines:?}");
        assert!(lines[1].starts_with("     word,"), "{lines:?}");
        assert_eq!(wrap("> ", &"x".repeat(120)), [format!("> {}", "x".repeat(120))]);
    }
}
