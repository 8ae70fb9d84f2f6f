//! The threads that call the library. Each ends by itself, and says so last of all.

use std::ops::Deref;
use std::sync::Arc;

use super::{Asks, Id, Message};
use crate::nvml::calls::Caller;
use crate::nvml::enumerate::{Cache, Driver, Part};
use crate::nvml::error::CallError;
use crate::nvml::places::Paths;

/// The opened library, shared by all threads that call it. The last one to drop it shuts NVML down.
pub(in crate::nvml) struct OpenDriver {
    // Fields are dropped in this order: the message goes out when the library is closed.
    driver: Driver,
    _closed: Lease,
}

impl Deref for OpenDriver {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

/// Says when all that an opening led to is gone.
struct Lease {
    id: Id,
    asks: Asks,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.asks.send(Message::Closed(self.id));
    }
}

/// Opens the library.
pub(super) fn open(id: Id, calls: Caller, paths: Paths, asks: Asks) -> impl FnOnce() + Send + 'static {
    move || {
        let lease = Lease { id, asks: asks.clone() };
        match Driver::open(&paths, &calls) {
            Ok(driver) => asks.send(Message::Opened(id, Ok(Arc::new(OpenDriver { driver, _closed: lease })))),
            Err(error) => {
                asks.send(Message::Opened(id, Err(error)));
                // In this order, for the message that all is closed is waited for only from now on.
                drop(lease);
            }
        }
    }
}

/// What a look says as it comes forward.
pub(super) enum Step {
    /// There are so many GPUs.
    Count(u32),
    /// The library answers, whatever a GPU does.
    Alive,
    /// The GPU with this index has answered.
    Gpu(u32, Box<Part>),
    /// The driver as a whole has gone, or the look was given up.
    Failed(CallError),
    /// There is nothing more to ask. What was learnt is for the next look.
    Done(Box<Cache>),
}

impl Step {
    /// Whether the thread ends with it.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Done(_))
    }
}

/// Which GPUs a look asks.
pub(super) enum Range {
    /// All but these.
    AllBut(Vec<u32>),
    /// The rest of a look that was given up on one GPU.
    Only(Vec<u32>),
}

/// Starts a thread that has nobody to wait for it.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Asks each GPU of the range.
pub(super) fn look(
    driver: &Driver,
    calls: &Caller,
    paths: &Paths,
    mut cache: Box<Cache>,
    range: Range,
    tell: impl Fn(Step),
) {
    let roots = paths.roots();
    let work = || -> Result<Box<Cache>, CallError> {
        cache.begin(&roots);
        let gpus = match range {
            Range::AllBut(skipped) => {
                let count = driver.count(calls)?;
                tell(Step::Count(count));
                (0..count).filter(|index| !skipped.contains(index)).collect()
            }
            Range::Only(gpus) => {
                // A hang may hold a lock of the whole library, and is no fault of these GPUs then.
                driver.ping(calls)?;
                tell(Step::Alive);
                gpus
            }
        };
        for index in gpus {
            let part = driver.gpu(calls, &roots, &mut cache, index)?;
            tell(Step::Gpu(index, Box::new(part)));
        }
        Ok(cache)
    };
    match work() {
        Ok(cache) => tell(Step::Done(cache)),
        Err(error) => tell(Step::Failed(error)),
    }
}

/// Drops what may be the last hold on the library, and so call it, on a thread of its own.
pub(super) fn drop_elsewhere(last: Arc<OpenDriver>) {
    if let Err(error) = spawn("nvml-close", move || drop(last)) {
        tracing::error!(%error, "no thread could be started to close NVML");
    }
}
