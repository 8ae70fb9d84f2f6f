//! Which pods hold devices, for those who look: the kubelet is asked seldom, and nobody waits long for it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::kubelet::{Holding, PodResourcesError, holdings};

/// How long an answer is good.
const FRESH: Duration = Duration::from_secs(10);

/// How long whoever looks waits for an answer: after that, the one before has to do.
const PATIENCE: Duration = Duration::from_secs(1);

/// An answer that is older than this says nothing about now.
const TOO_OLD: Duration = Duration::from_mins(1);

/// What is known of who holds what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holders {
    /// All resources', also other plugins'; empty where nothing is known.
    pub(super) holdings: Arc<Vec<Holding>>,
    /// Why nothing is known, where nothing is.
    pub(super) unknown: Option<String>,
}

/// The last answer, and whether a question is open. Whoever waits for the answer is told by the channel.
#[derive(Debug, Default)]
pub(super) struct Asker(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    open: bool,
    answered: Option<(Instant, Arc<Vec<Holding>>)>,
    error: Option<String>,
}

impl Asker {
    /// What the kubelet at `socket` says, or said a moment ago.
    pub(super) async fn ask(&self, socket: &Path) -> Holders {
        let mut answers = self.0.subscribe();
        let due = self.0.send_if_modified(|state| {
            let due = !state.open && state.asked.is_none_or(|asked| asked.elapsed() >= FRESH);
            if due {
                state.open = true;
                state.asked = Some(Instant::now());
            }
            due
        });
        if due {
            let (answer, socket) = (self.0.clone(), socket.to_owned());
            // Bounded by the question's own time-outs.
            tokio::spawn(async move {
                let holdings = holdings(&socket).await;
                answer.send_modify(|state| state.take(holdings));
            });
        }
        // What is known counts, whether there was an answer in time or not.
        timeout(PATIENCE, answers.wait_for(|state| !state.open)).await.ok();
        self.0.borrow().known()
    }
}

impl State {
    fn take(&mut self, answer: Result<Vec<Holding>, PodResourcesError>) {
        self.open = false;
        match answer {
            Ok(holdings) => {
                self.answered = Some((Instant::now(), Arc::new(holdings)));
                self.error = None;
            }
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    fn known(&self) -> Holders {
        match (&self.answered, &self.error) {
            (Some((at, holdings)), error) if error.is_none() || at.elapsed() < TOO_OLD => {
                Holders { holdings: Arc::clone(holdings), unknown: None }
            }
            (_, error) => {
                let unknown = Some(error.clone().unwrap_or_else(no_answer));
                Holders { holdings: Arc::default(), unknown }
            }
        }
    }
}

fn no_answer() -> String {
    format!("the kubelet has not said within {PATIENCE:?} which pods hold devices")
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_a_reason_and_not_asked_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kubelet.sock");
        let asker = Asker::default();
        let known = asker.ask(&socket).await;
        assert!(known.unknown.as_ref().is_some_and(|why| why.contains("kubelet.sock")), "{known:?}");
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(asker.ask(&socket).await, known);
        assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "it was asked again");
    }

    #[tokio::test]
    async fn a_kubelet_that_does_not_answer_delays_nobody_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kubelet.sock");
        let _silent = UnixListener::bind(&socket).unwrap();
        let asker = Arc::new(Asker::default());
        let all = (0..8).map(|_| {
            let (asker, socket) = (Arc::clone(&asker), socket.clone());
            tokio::spawn(async move { asker.ask(&socket).await })
        });
        for one in all.collect::<Vec<_>>() {
            let known = timeout(Duration::from_secs(30), one).await.unwrap().unwrap();
            assert!(
                known.holdings.is_empty() && known.unknown.is_some_and(|why| why.contains("has not said"))
            );
        }
    }

    #[test]
    fn an_old_answer_counts_for_a_while() {
        let holding = Holding {
            resource: "nvidia.com/gpu".to_owned(),
            device: crate::resource::DeviceId("GPU-0".to_owned()),
            namespace: "a".to_owned(),
            pod: "b".to_owned(),
            container: "c".to_owned(),
            numa_node: None,
        };
        let holdings = Arc::new(vec![holding]);
        let mut state = State { answered: Some((Instant::now(), Arc::clone(&holdings))), ..State::default() };
        assert_eq!(state.known().holdings, holdings);
        state.error = Some("it is restarting".to_owned());
        assert_eq!(state.known().holdings, holdings);
        state.answered = Instant::now().checked_sub(TOO_OLD).map(|at| (at, holdings));
        let known = state.known();
        assert_eq!((known.holdings.len(), known.unknown.as_deref()), (0, Some("it is restarting")));
    }
}
