use std::io;

use super::*;
use crate::kubelet::PodResourcesError;

fn id(text: &str) -> DeviceId {
    DeviceId(text.to_owned())
}

const GPU: &str = "nvidia.com/gpu";

fn claims(devices: &[&str]) -> Vec<Claim> {
    let claim = |device: &&str| Claim { resource: GPU.to_owned(), device: id(device), numa_node: None };
    devices.iter().map(claim).collect()
}

fn no_answer() -> Result<Vec<Claim>, PodResourcesError> {
    Err(PodResourcesError::new("/nonexistent".as_ref(), "nobody is there"))
}

fn written(file: u64, devices: &[&str]) -> Checkpoint {
    Checkpoint { file: FileId::number(file), claims: claims(devices) }
}

fn unreadable(kind: io::ErrorKind) -> CheckpointError {
    CheckpointError::Unreadable { path: "/checkpoint".into(), source: kind.into() }
}

/// What reading the checkpoint comes to.
struct Written(Result<Checkpoint, CheckpointError>);

impl From<Checkpoint> for Written {
    fn from(checkpoint: Checkpoint) -> Self {
        Self(Ok(checkpoint))
    }
}

impl From<CheckpointError> for Written {
    fn from(error: CheckpointError) -> Self {
        Self(Err(error))
    }
}

/// One device on its way out, and a kubelet whose list is followed.
struct Case {
    held: Held,
    since: Instant,
}

impl Case {
    fn new() -> Self {
        Self { held: Held::default(), since: Instant::now() }
    }

    /// Lets time pass until there is a look, and gives it this.
    async fn look(
        &mut self,
        listed: Result<Vec<Claim>, PodResourcesError>,
        checkpoint: impl Into<Written>,
    ) -> Duration {
        let Written(checkpoint) = checkpoint.into();
        let began = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        while !self.held.ask(self.since) {
            tokio::time::advance(Duration::from_millis(10)).await;
            assert!(began.elapsed() < Duration::from_mins(1), "there is no look");
        }
        let alive = listed.is_ok();
        self.held.take(Look { listed, checkpoint, alive }, true);
        began.elapsed()
    }

    fn is_free(&self, device: &str) -> bool {
        self.held.lets_go(GPU, &id(device), self.since)
    }

    fn sends_again(&mut self, device: &str) -> bool {
        self.held.send_again([(GPU, &id(device), self.since)].into_iter())
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_is_free_when_a_newer_checkpoint_is_without_it() {
    let mut case = Case::new();
    assert!(!case.sends_again("a"), "nothing has been asked yet");
    case.look(Ok(claims(&["b"])), written(1, &["b", "a"])).await;
    assert!(!case.is_free("a"));
    assert!(case.sends_again("a"));
    assert!(!case.sends_again("a"), "once is enough");
    let waited = case.look(Ok(claims(&["b"])), written(1, &["b", "a"])).await;
    assert!(waited < Duration::from_secs(1), "the kubelet writes soon");
    assert!(!case.is_free("a"), "it is the file of before");
    case.look(Ok(claims(&["b"])), written(2, &["b"])).await;
    assert!(case.is_free("a") && !case.is_free("b"));
    assert!(
        case.held.lets_go("nvidia.com/mig-1g.10gb", &id("b"), case.since),
        "it is held under another name"
    );
    assert!(!case.held.lets_go(GPU, &id("a"), Instant::now()), "that was seen before it began to leave");
    let waited = case.look(Ok(claims(&["b"])), written(2, &["b"])).await;
    assert!(waited >= FRESH / 2, "the kubelet is asked gently: {waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_file_without_the_device_that_is_not_newer_frees_nothing() {
    let mut case = Case::new();
    for _ in 0..5 {
        case.look(Ok(vec![]), written(1, &[])).await;
        assert!(!case.is_free("a"));
    }
}

#[tokio::test(start_paused = true)]
async fn podresources_alone_frees_nothing() {
    // A kubelet that has just started answers without the API server's pods; init containers are never named.
    let mut case = Case::new();
    for file in 1..10 {
        case.look(Ok(vec![]), written(file, &["a"])).await;
        assert!(!case.is_free("a"));
    }
    case.look(Ok(claims(&["b"])), written(10, &[])).await;
    assert!(case.is_free("a") && !case.is_free("b"), "either may name it");
}

#[tokio::test(start_paused = true)]
async fn lists_are_sent_again_ever_more_seldom_for_a_device_that_stays() {
    let mut case = Case::new();
    let mut sent = Vec::new();
    let start = Instant::now();
    for file in 1..400 {
        case.look(Ok(vec![]), written(file, &["a"])).await;
        if case.sends_again("a") {
            sent.push(start.elapsed());
        }
    }
    let gaps: Vec<_> = sent.windows(2).map(|two| two[1].saturating_sub(two[0])).collect();
    assert!(gaps.len() > 5 && gaps[0] < Duration::from_secs(10), "{gaps:?}");
    assert!(gaps.windows(2).all(|two| two[0] <= two[1] + FRESH), "{gaps:?}");
    let last = *gaps.last().unwrap();
    assert!(last >= SEND_AGAIN.1 && last <= SEND_AGAIN.1 + 2 * FRESH, "{gaps:?}");
    // What podresources says has changed, so that it may be free now.
    case.look(Ok(claims(&["b"])), written(400, &["a"])).await;
    assert!(case.sends_again("a"));
    case.look(Ok(claims(&["a"])), written(401, &["a"])).await;
    tokio::time::advance(2 * SEND_AGAIN.1).await;
    assert!(!case.sends_again("a"), "a pod is known to hold it");
}

#[tokio::test(start_paused = true)]
async fn without_podresources_the_checkpoint_decides() {
    let mut case = Case::new();
    case.look(Ok(claims(&["a"])), written(1, &["a"])).await;
    for file in 2..=u64::from(GIVE_UP) + 1 {
        case.look(no_answer(), written(file, &[])).await;
        assert_eq!(case.is_free("a"), file > u64::from(GIVE_UP), "after {file} looks");
    }
    assert!(case.held.is_known());
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_is_away_frees_nothing() {
    let mut case = Case::new();
    case.look(Ok(claims(&["a"])), written(1, &["a"])).await;
    for _ in 0..10 {
        let look = Look { listed: no_answer(), checkpoint: Ok(written(1, &["a"])), alive: false };
        case.held.take(look, false);
    }
    assert!(!case.is_free("a"));
    assert!(case.held.claims().any(|claim| claim.device == id("a")));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_cannot_be_used_frees_nothing_and_is_a_trouble_until_it_can() {
    let why = "it is written in verse".to_owned();
    let unknown = CheckpointError::UnknownForm { path: "/checkpoint".into(), why };
    let mut case = Case::new();
    case.look(Ok(vec![]), written(1, &[])).await;
    for checkpoint in
        [unknown, unreadable(io::ErrorKind::PermissionDenied), unreadable(io::ErrorKind::NotFound)]
    {
        case.look(Ok(vec![]), checkpoint).await;
        assert!(!case.is_free("a"));
        assert!(
            case.held
                .trouble()
                .is_some_and(|why| why.contains("/checkpoint") && why.contains("stays listed"))
        );
    }
    // One that is missing is written for a list that is sent again.
    assert!(case.sends_again("a"));
    case.look(Ok(vec![]), written(2, &[])).await;
    assert!(case.is_free("a") && case.held.trouble().is_none());
}

#[tokio::test(start_paused = true)]
async fn before_the_kubelet_follows_our_lists_a_missing_checkpoint_is_no_trouble() {
    let mut held = Held::default();
    assert!(held.ask_soon() && !held.ask_soon(), "one look at a time");
    let look =
        Look { listed: no_answer(), checkpoint: Err(unreadable(io::ErrorKind::NotFound)), alive: false };
    held.take(look, false);
    assert!(held.trouble().is_none() && held.is_awaited());
}
