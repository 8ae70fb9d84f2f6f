//! How GPUs are connected.

use std::sync::Arc;

use fake_nvml::{NvLinks, Preset, Topology};

use super::*;
use crate::inventory::{Link, Links, PciePath};

/// What a session knows of the links between GPUs, once it does, and the GPUs' UUIDs.
async fn links(fake: &Fake, listener: &mut Listener, pairs: usize) -> (Arc<Links>, Vec<String>) {
    let gpus = listener.inventory().await.gpus.into_iter().map(|gpu| gpu.uuid).collect();
    let status = listener.session.status();
    wait_until(|| status.links().len() == pairs, "the links").await;
    assert!(fake.count("nvmlDeviceGetNvLinkState") > 0);
    (status.links(), gpus)
}

fn link(nvlinks: u32, pcie: PciePath) -> Link {
    Link { nvlinks, pcie: Some(pcie) }
}

#[tokio::test]
async fn links_are_asked_once_and_after_the_first_list() {
    let fake = Fake::new(&Description::of("v100-sxm2-32gb", 8).with_topology(Preset::Dgx1));
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    let (links, gpus) = links(&fake, &mut listener, 28).await;
    let between = |a: usize, b: usize| links.between(&gpus[a], &gpus[b]).unwrap();
    assert_eq!(between(0, 1), link(1, PciePath::Switch));
    assert_eq!(between(3, 0), link(2, PciePath::HostBridge));
    assert_eq!(between(0, 4), link(2, PciePath::System));
    assert_eq!(between(0, 5), link(0, PciePath::System));
    let asked =
        ["nvmlDeviceGetNvLinkState", "nvmlDeviceGetTopologyCommonAncestor"].map(|call| fake.count(call));
    assert_eq!(asked[1], 28, "each pair once");
    let looks = fake.count("nvmlDeviceGetCount_v2");
    wait_until(|| fake.count("nvmlDeviceGetCount_v2") > looks + 2, "more looks").await;
    assert_eq!(fake.count("nvmlDeviceGetNvLinkState"), asked[0]);
    assert_eq!(fake.count("nvmlDeviceGetTopologyCommonAncestor"), 28);
}

#[tokio::test]
async fn links_to_switches_connect_all_alike_and_those_that_are_down_do_not_count() {
    let fake = Fake::new(&Description::h100s(4).with_topology(Preset::Hgx));
    let mut listener = Listener::new(fake.paths(), None);
    let (links, gpus) = links(&fake, &mut listener, 6).await;
    for (n, a) in gpus.iter().enumerate() {
        assert!(gpus[n + 1..].iter().all(|b| links.between(a, b).unwrap().nvlinks == 18), "{links:?}");
    }
    let mut topology = Topology::default().nvlinks(0, 1, 4);
    topology.nvlinks.get_or_insert_default().push(NvLinks { gpus: [0, 2], links: 4, active: false });
    let fake = Fake::new(&Description::h100s(3).with_topology(topology));
    let mut listener = Listener::new(fake.paths(), None);
    let (links, gpus) = self::links(&fake, &mut listener, 3).await;
    assert_eq!(links.between(&gpus[0], &gpus[1]).unwrap().nvlinks, 4);
    assert_eq!(links.between(&gpus[0], &gpus[2]).unwrap().nvlinks, 0);
}

#[tokio::test]
async fn what_the_driver_does_not_tell_is_not_asked_again() {
    let mut description = Description::h100s(2).with_topology(Preset::Bridges);
    description.faults = ["nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetNvLinkState"]
        .map(|call| Fault::error(call, "UNKNOWN"))
        .into();
    let fake = Fake::new(&description);
    let mut listener = Listener::new(fake.paths(), None);
    let (links, gpus) = links(&fake, &mut listener, 1).await;
    assert_eq!(links.between(&gpus[0], &gpus[1]), Some(Link::default()));
}

#[tokio::test]
async fn a_gpu_that_is_lost_while_it_is_asked_is_asked_again_when_it_is_back() {
    for call in ["nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetNvLinkState"] {
        let mut description = Description::h100s(3).with_topology(Topology::default().nvlinks(0, 1, 4));
        description.faults = vec![Fault::error(call, "GPU_IS_LOST").on_gpu(0)];
        let fake = Fake::new(&description);
        let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
        let (first, gpus) = links(&fake, &mut listener, 1).await;
        assert_eq!(first.between(&gpus[0], &gpus[1]), None, "{call}");
        fake.update(|node| node.faults.clear());
        let (then, _) = links(&fake, &mut listener, 3).await;
        assert_eq!(then.between(&gpus[0], &gpus[1]).unwrap().nvlinks, 4, "{call}");
    }
}

#[tokio::test]
async fn gpus_in_mig_mode_and_single_ones_are_not_asked() {
    let fake = Fake::new(&Description::h100s(3).with_mig(0, &["1g.10gb"]).with_mig(1, &["1g.10gb"]));
    let listener = Listener::listening(&fake).await;
    fake.update(|node| node.set_mig_mode(1, false));
    listener.session.rescan();
    let status = listener.session.status();
    wait_until(|| status.links().len() == 1, "the links of two").await;
    assert_eq!(fake.count("nvmlDeviceGetTopologyCommonAncestor"), 1);
}

#[tokio::test]
async fn a_call_about_links_that_hangs_keeps_nothing_waiting() {
    let mut description = Description::h100s(2).with_topology(Preset::Bridges);
    description.faults = vec![Fault::delay("nvmlDeviceGetNvLinkState", 60_000)];
    let fake = Fake::new(&description);
    let mut listener = Listener::new(fake.paths(), Some(Duration::from_millis(20)));
    listener.inventory().await;
    wait_until(|| fake.count("nvmlDeviceGetNvLinkState") > 0, "the call").await;
    for _ in 0..3 {
        listener.inventory().await;
    }
    assert_eq!(fake.count("nvmlDeviceGetNvLinkState"), 1);
    fake.update(|node| node.faults.clear());
    let status = listener.session.status();
    wait_until(|| status.links().len() == 1, "the links").await;
}
