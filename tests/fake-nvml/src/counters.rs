//! How often each NVML function was called, counted by all processes that loaded a node's library.
//!
//! The file `fake-nvml/counters` is a table of 64-byte slots, mapped by whoever counts: a function's name
//! (56 bytes, padded with zeroes), then its count (8 bytes, native order). A slot, once named, stays.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::host::SharedWords;

const SLOTS: usize = 512;
const SLOT_WORDS: usize = 8;
const NAME_WORDS: usize = 7;
const SLOT_BYTES: usize = SLOT_WORDS * 8;
const NAME_BYTES: usize = NAME_WORDS * 8;

/// The table, for one that counts.
#[derive(Debug)]
pub(crate) struct Counters {
    table: SharedWords,
    /// The word of each function's count, in the order of the names given to `open`; none if the table is full.
    counts: Vec<Option<usize>>,
}

impl Counters {
    /// Opens the table, and finds or makes a slot for each of the names.
    pub(crate) fn open(path: &Path, names: &[&str]) -> io::Result<Self> {
        let file = open_table(path)?;
        let table = SharedWords::map(&file, SLOTS * SLOT_WORDS)?;
        // Two processes must not take the same slot for two names.
        file.lock()?;
        let counts = names.iter().map(|name| slot(table.words(), name)).collect();
        file.unlock()?;
        Ok(Self { table, counts })
    }

    /// Counts a call of the `index`-th name.
    pub(crate) fn count(&self, index: usize) {
        if let Some(word) = self.word(index) {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.counts.get(index).copied().flatten().and_then(|count| self.table.words().get(count))
    }
}

/// The word of this name's count.
fn slot(words: &[AtomicU64], name: &str) -> Option<usize> {
    let mut wanted = [0; NAME_WORDS];
    for (word, bytes) in wanted.iter_mut().zip(name.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(padded);
    }
    for (index, slot) in words.chunks_exact(SLOT_WORDS).enumerate() {
        let free = slot[0].load(Ordering::Relaxed) == 0;
        if free {
            for (word, value) in slot.iter().zip(wanted) {
                word.store(value, Ordering::Relaxed);
            }
        }
        if slot.iter().zip(wanted).all(|(word, value)| word.load(Ordering::Relaxed) == value) {
            return Some(index * SLOT_WORDS + NAME_WORDS);
        }
    }
    None
}

fn open_table(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    if file.metadata()?.len() < (SLOTS * SLOT_BYTES) as u64 {
        file.set_len((SLOTS * SLOT_BYTES) as u64)?;
    }
    Ok(file)
}

/// Makes the table, if it is not there.
pub(crate) fn create(path: &Path) -> io::Result<()> {
    open_table(path).map(drop)
}

/// The functions that were called, and how often.
pub(crate) fn read(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    let counts = bytes.chunks_exact(SLOT_BYTES).filter_map(|slot| {
        let (name, count) = slot.split_at(NAME_BYTES);
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        let name = String::from_utf8_lossy(&name[..length]).into_owned();
        let count = u64::from_ne_bytes(count.try_into().ok()?);
        (count > 0).then_some((name, count))
    });
    Ok(counts.collect())
}

/// Sets every count to zero.
pub(crate) fn reset(path: &Path) -> io::Result<()> {
    let table = SharedWords::map(&open_table(path)?, SLOTS * SLOT_WORDS)?;
    for slot in table.words().chunks_exact(SLOT_WORDS) {
        slot[NAME_WORDS].store(0, Ordering::Relaxed);
    }
    Ok(())
}
