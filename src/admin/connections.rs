//! How many connections are open at a time. Whoever comes when there are as many as may be ends the oldest one, so that
//! clients that sit on theirs keep nobody out. A probe is counted apart as soon as its request has been read: however
//! many others come while it is answered, it gets its answer, and the kubelet does not restart the pod for their sake.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;
use tracing::debug;

/// How many connections that are no probe's, or that have not said yet what they want.
const MAX_OTHERS: usize = 32;

/// How many probes. The kubelet has two of them open at most, but anybody can ask what it asks.
const MAX_PROBES: usize = 16;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Rooms>);

#[derive(Debug, Default)]
struct Rooms {
    next: u64,
    others: VecDeque<Connection>,
    probes: VecDeque<Connection>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    task: AbortHandle,
}

/// What a connection says of itself.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    connections: Arc<Connections>,
}

impl Connections {
    /// Runs what `talk` makes of the new connection.
    pub(super) fn open<F>(self: &Arc<Self>, talk: impl FnOnce(Ticket) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.next += 1;
        let number = rooms.next;
        let running = tokio::spawn(talk(Ticket { number, connections: Arc::clone(self) }));
        admit(&mut rooms.others, Connection { number, task: running.abort_handle() }, MAX_OTHERS);
    }
}

impl Ticket {
    /// Its request is a probe's.
    pub(super) fn is_probe(&self) {
        let mut rooms = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rooms = &mut *rooms;
        if let Some(at) = rooms.others.iter().position(|connection| connection.number == self.number)
            && let Some(connection) = rooms.others.remove(at)
        {
            admit(&mut rooms.probes, connection, MAX_PROBES);
        }
    }
}

fn admit(room: &mut VecDeque<Connection>, new: Connection, most: usize) {
    room.retain(|connection| !connection.task.is_finished());
    if room.len() >= most
        && let Some(oldest) = room.pop_front()
    {
        debug!("too many connections over HTTP: the oldest is ended");
        oldest.task.abort();
    }
    room.push_back(new);
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// Opens a connection that goes on until it is ended; its number comes out of `ended` then.
    fn open(connections: &Arc<Connections>, probe: bool, number: usize, ended: &mpsc::Sender<usize>) {
        struct End(usize, mpsc::Sender<usize>);
        impl Drop for End {
            fn drop(&mut self) {
                self.1.try_send(self.0).unwrap();
            }
        }
        let end = End(number, ended.clone());
        connections.open(|ticket| async move {
            let _end = end;
            if probe {
                ticket.is_probe();
            }
            std::future::pending::<()>().await;
        });
    }

    #[tokio::test]
    async fn each_kind_has_its_own_bound_and_loses_its_own_oldest() {
        let connections = Arc::new(Connections::default());
        let (sender, mut ended) = mpsc::channel(1000);
        for number in 0..MAX_PROBES {
            open(&connections, true, number, &sender);
            tokio::task::yield_now().await;
        }
        for number in 100..100 + MAX_OTHERS + 2 {
            open(&connections, false, number, &sender);
            tokio::task::yield_now().await;
        }
        assert_eq!((ended.recv().await, ended.recv().await), (Some(100), Some(101)));
        open(&connections, true, 200, &sender);
        // It was one of the others at first, and the oldest of them had to go for it.
        assert_eq!((ended.recv().await, ended.recv().await), (Some(102), Some(0)));
        assert!(ended.try_recv().is_err());
    }
}
