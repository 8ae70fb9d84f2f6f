//! `/livez`: whether this program goes on. `/readyz`: whether the kubelet knows what is offered.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::kubelet::Registration;
use crate::resource::ResourceName;
use crate::supervisor::{Pulse, Snapshot};

/// How long nothing may come forward.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the supervisor has for an answer. The kubelet gives a probe 1 s, unless it is told otherwise.
const PATIENCE: Duration = Duration::from_millis(500);

/// Since when the supervisor has not answered; `None` while it does.
#[derive(Debug, Default)]
pub(super) struct Silence(Mutex<Option<Instant>>);

impl Silence {
    /// Asks the supervisor for a sign of life. For how long there has been none.
    pub(super) async fn listen(&self, pulse: &tokio::sync::mpsc::Sender<Pulse>) -> Option<Duration> {
        let answer = async {
            let (asker, answer) = oneshot::channel();
            pulse.send(asker).await.is_ok() && answer.await.is_ok()
        };
        let answered = timeout(PATIENCE, answer).await.unwrap_or(false);
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            *since = None;
        } else if since.is_none() {
            *since = Some(Instant::now());
        }
        since.map(|since| since.elapsed())
    }
}

/// The sentence for `/livez`: why this program should be started again, if it should. A driver that does not answer is
/// no reason: a thread that is stuck in the kernel survives even SIGKILL, and the next process would be stuck as well.
pub(super) fn alive(silent: Option<Duration>) -> Result<&'static str, String> {
    match silent.filter(|time| *time >= LIMIT) {
        Some(time) => Err(format!("the supervisor has not answered for {} s\n", time.as_secs())),
        None => Ok("ok\n"),
    }
}

/// What is said of a driver that does not answer.
pub(super) fn no_answer(why: &str) -> String {
    format!(
        "the driver does not answer, so nothing is known to be new: {why}; what is offered stays as it was"
    )
}

/// One resource, as far as it concerns readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) name: String,
    pub(super) devices: usize,
    /// Why it is not registered.
    pub(super) missing: Option<String>,
}

/// What readiness is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Readiness {
    /// Whether the driver was looked at, with whatever outcome.
    pub(super) looked: bool,
    /// Why there is no driver, or no use of it.
    pub(super) without: Option<String>,
    pub(super) resources: Vec<Registered>,
}

impl Readiness {
    pub(super) fn of(snapshot: Option<&Snapshot>) -> Self {
        let Some(snapshot) = snapshot else { return Self::default() };
        let registered = |name: &ResourceName| match snapshot.resources.get(name) {
            None => Registered {
                name: name.to_string(),
                devices: 0,
                missing: Some("it is about to be served".to_owned()),
            },
            Some(served) => Registered {
                name: name.to_string(),
                devices: served.devices.len(),
                missing: match served.endpoint.registration() {
                    Registration::Registered => None,
                    Registration::Missing(why) => Some(why),
                },
            },
        };
        let mut names: Vec<_> = snapshot.resources.keys().chain(&snapshot.offered).collect();
        names.sort();
        names.dedup();
        Self {
            looked: snapshot.inventory.is_some() || snapshot.no_driver.is_some() || snapshot.on_hold,
            without: match &snapshot.no_driver {
                _ if snapshot.on_hold => Some("on hold: SIGUSR2 goes on".to_owned()),
                Some(why) => Some(format!("no driver: {why}")),
                None => snapshot.no_answer.as_ref().map(|why| no_answer(why)),
            },
            resources: names.into_iter().map(registered).collect(),
        }
    }

    /// The body of `/readyz`. A node without a driver, or with nothing to offer, is ready: there is nothing to wait for,
    /// and a rolling update must go on.
    pub(super) fn told(&self) -> Result<String, String> {
        if !self.looked {
            return Err("not ready: the driver has not been looked at yet\n".to_owned());
        }
        let missing = self.resources.iter().filter(|resource| resource.missing.is_some()).count();
        let mut text = match missing {
            0 => "ready\n".to_owned(),
            _ => format!("not ready: {missing} of {} resources are not registered\n", self.resources.len()),
        };
        if let Some(why) = &self.without {
            writeln!(text, "{why}").ok();
        }
        for Registered { name, devices, missing } in &self.resources {
            match missing {
                None => writeln!(text, "{name}: registered, {devices} devices").ok(),
                Some(why) => writeln!(text, "{name}: not registered: {why}").ok(),
            };
        }
        if self.resources.is_empty() {
            text += "there is nothing to register\n";
        }
        if missing == 0 { Ok(text) } else { Err(text) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_supervisor_that_stands_still_for_half_a_minute_is_not_alive() {
        assert_eq!(alive(None), Ok("ok\n"));
        assert_eq!(alive(Some(seconds(29))), Ok("ok\n"));
        let why = alive(Some(seconds(31))).unwrap_err();
        assert!(why.contains("supervisor") && why.contains("31 s"), "{why}");
    }

    #[tokio::test]
    async fn silence_counts_from_the_first_question_without_an_answer() {
        let silence = Silence::default();
        let (pulse, mut asked) = mpsc::channel::<Pulse>(1);
        let answering = tokio::spawn(async move {
            for _ in 0..2 {
                let question = asked.recv().await.unwrap();
                question.send(()).unwrap();
            }
            asked
        });
        assert_eq!(silence.listen(&pulse).await, None);
        assert_eq!(silence.listen(&pulse).await, None);
        let mut asked = answering.await.unwrap();
        let first = silence.listen(&pulse).await.unwrap();
        assert!(silence.listen(&pulse).await.unwrap() > first);
        while let Ok(late) = asked.try_recv() {
            drop(late);
        }
        let again = tokio::spawn(async move { asked.recv().await.unwrap().send(()).unwrap() });
        assert_eq!(silence.listen(&pulse).await, None);
        again.await.unwrap();
        assert!(silence.listen(&pulse).await.is_some(), "a supervisor that has ended does not answer");
    }

    fn registered(name: &str, missing: Option<&str>) -> Registered {
        Registered { name: name.to_owned(), devices: 7, missing: missing.map(str::to_owned) }
    }

    #[test]
    fn nobody_is_ready_before_the_driver_was_looked_at() {
        assert!(Readiness::of(None).told().is_err_and(|why| why.contains("not been looked at")));
    }

    #[test]
    fn every_resource_has_to_be_registered_and_each_is_told() {
        let resources = vec![registered("a", None), registered("b", Some("the kubelet refused"))];
        let mut readiness = Readiness { looked: true, without: None, resources };
        let told = readiness.told().unwrap_err();
        assert!(
            told.contains("1 of 2") && told.contains("b: not registered: the kubelet refused\n"),
            "{told}"
        );
        readiness.resources[1].missing = None;
        assert_eq!(readiness.told().unwrap(), "ready\na: registered, 7 devices\nb: registered, 7 devices\n");
    }

    #[test]
    fn a_node_with_nothing_to_offer_is_ready_and_says_so() {
        let without = Some("no driver: none was found".to_owned());
        let told = Readiness { looked: true, without, resources: Vec::new() }.told().unwrap();
        assert_eq!(told, "ready\nno driver: none was found\nthere is nothing to register\n");
    }
}
