//! How GPUs are connected: PCIe levels, `NVLinks` and who can reach whom.

use fake_nvml::{Branch, Description, NodeError, NvLinks, Preset, Topology};
use nvml_wrapper_sys::bindings::{self as sys, nvmlDevice_t};

use crate::{
    call,
    client::{Answer, Client, filled},
    node,
};

const INVALID: u32 = 2;
const NOT_SUPPORTED: u32 = 3;

fn level(client: &Client, a: u32, b: u32) -> u32 {
    let (a, b) = (client.gpu(a).unwrap(), client.gpu(b).unwrap());
    filled(|place| call!(client, nvmlDeviceGetTopologyCommonAncestor(a, b, place))).unwrap()
}

fn active(client: &Client, gpu: nvmlDevice_t, link: u32) -> Answer<u32> {
    filled(|place| call!(client, nvmlDeviceGetNvLinkState(gpu, link, place)))
}

fn remote(client: &Client, gpu: nvmlDevice_t, link: u32) -> Answer<sys::nvmlPciInfo_t> {
    filled(|place| call!(client, nvmlDeviceGetNvLinkRemotePciInfo_v2(gpu, link, place)))
}

fn peers(client: &Client, a: u32, b: u32, kind: u32) -> Answer<u32> {
    let (a, b) = (client.gpu(a).unwrap(), client.gpu(b).unwrap());
    filled(|place| call!(client, nvmlDeviceGetP2PStatus(a, b, kind, place)))
}

/// Active links between two GPUs, counted as clients do it: by the address at the other end.
fn links(client: &Client, a: u32, b: u32) -> usize {
    let (a, b) = (client.gpu(a).unwrap(), client.gpu(b).unwrap());
    let there = filled(|place| call!(client, nvmlDeviceGetPciInfo_v3(b, place))).unwrap().busId;
    let up = (0..18).filter(|link| active(client, a, *link) == Ok(1));
    up.filter(|link| remote(client, a, *link).unwrap().busId == there).count()
}

#[test]
fn without_a_topology_only_numa_nodes_differ_and_no_gpu_has_links() {
    let (_folder, node) = node(&Description::h100s(4));
    let client = Client::of(&node);
    assert_eq!([level(&client, 0, 0), level(&client, 0, 1), level(&client, 0, 2)], [0, 40, 50]);
    let gpu = client.gpu(0).unwrap();
    assert_eq!(active(&client, gpu, 0), Err(NOT_SUPPORTED));
    assert_eq!(remote(&client, gpu, 0).err(), Some(NOT_SUPPORTED));
    assert_eq!([peers(&client, 0, 1, 0), peers(&client, 0, 1, 2)], [Ok(0), Ok(5)]);
    assert_eq!([peers(&client, 0, 2, 0), peers(&client, 0, 2, 5)], [Ok(3), Err(INVALID)]);
}

#[test]
fn a_dgx1_is_a_cube_mesh() {
    let (_folder, node) = node(&Description::of("v100-sxm2-32gb", 8).with_topology(Preset::Dgx1));
    let client = Client::of(&node);
    let row = |gpu: u32| -> Vec<usize> { (0..8).map(|other| links(&client, gpu, other)).collect() };
    assert_eq!(row(0), [0, 1, 1, 2, 2, 0, 0, 0]);
    assert_eq!(row(7), [0, 0, 0, 1, 2, 1, 2, 0]);
    for gpu in 0..8 {
        assert_eq!(row(gpu).iter().sum::<usize>(), 6, "GPU {gpu}");
        assert!((0..8).all(|other| links(&client, other, gpu) == row(gpu)[other as usize]), "GPU {gpu}");
    }
    assert_eq!([level(&client, 0, 1), level(&client, 0, 2), level(&client, 0, 4)], [10, 30, 50]);
    // By link over sockets, by PCIe within one, and not at all.
    assert_eq!(
        [peers(&client, 0, 4, 0), peers(&client, 0, 4, 2), peers(&client, 0, 4, 4)],
        [Ok(0), Ok(0), Ok(3)]
    );
    assert_eq!([peers(&client, 0, 5, 0), peers(&client, 0, 5, 2)], [Ok(3), Ok(5)]);
    let gpu = client.gpu(0).unwrap();
    assert_eq!(active(&client, gpu, 6), Err(INVALID));
    let version: u32 = filled(|place| call!(client, nvmlDeviceGetNvLinkVersion(gpu, 0, place))).unwrap();
    assert_eq!(version, 2);
}

#[test]
fn on_switches_every_gpu_reaches_every_other_and_no_link_ends_at_a_gpu() {
    let (_folder, node) = node(&Description::h100s(8).with_topology(Preset::Hgx));
    let client = Client::of(&node);
    let gpu = client.gpu(0).unwrap();
    assert!((0..18).all(|link| active(&client, gpu, link) == Ok(1)));
    assert_eq!(active(&client, gpu, 18), Err(INVALID));
    let buses: Vec<u32> = (0..5).map(|link| remote(&client, gpu, link).unwrap().bus).collect();
    assert_eq!(buses, [5, 6, 7, 8, 5]);
    let kind: u32 =
        filled(|place| call!(client, nvmlDeviceGetNvLinkRemoteDeviceType(gpu, 0, place))).unwrap();
    assert_eq!(kind, 2);
    assert_eq!((links(&client, 0, 7), peers(&client, 0, 7, 2)), (0, Ok(0)));
    assert_eq!([level(&client, 0, 1), level(&client, 0, 7)], [40, 50]);
}

#[test]
fn mig_mode_ends_peer_to_peer_and_links_stay_up_or_not() {
    let description = Description::h100s(2).with_topology(Preset::Hgx).with_mig(0, &["7g.80gb"]);
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    let (split, whole) = (client.gpu(0).unwrap(), client.gpu(1).unwrap());
    assert_eq!([active(&client, split, 0), peers(&client, 0, 1, 2)], [Ok(1), Ok(5)]);
    node.update(|d| d.topology.active_with_mig = false).unwrap();
    assert_eq!([active(&client, split, 0), active(&client, whole, 0)], [Ok(0), Ok(1)]);
    assert_eq!(remote(&client, split, 0).err(), Some(NOT_SUPPORTED));
}

#[test]
fn bridges_join_pairs() {
    let (_folder, node) = node(&Description::of("a30-24gb", 4).with_topology(Preset::Bridges));
    let client = Client::of(&node);
    assert_eq!([links(&client, 0, 1), links(&client, 1, 0), links(&client, 1, 2)], [4, 4, 0]);
    assert_eq!([level(&client, 0, 1), level(&client, 1, 2)], [30, 50]);
}

#[test]
fn pcie_trees_give_every_level() {
    let (_folder, node) = node(&Description::a100s(12).with_topology(Preset::PcieTree));
    let client = Client::of(&node);
    let from_first: Vec<u32> = [1, 2, 4, 6].map(|other| level(&client, 0, other)).into();
    assert_eq!(from_first, [10, 20, 30, 50]);
    let gpu = client.gpu(0).unwrap();
    let mut near = [std::ptr::null_mut(); 4];
    let mut count = 4;
    call!(client, nvmlDeviceGetTopologyNearestGpus(gpu, 20, &raw mut count, near.as_mut_ptr())).unwrap();
    assert_eq!((count, client.uuid(near[0])), (2, client.uuid(client.gpu(2).unwrap())));
    let board = Topology { boards: vec![vec![0, 1]], ..Topology::default() }.host_bridge([
        Branch::Gpu(0),
        Branch::gpus([1]),
        Branch::Gpu(2),
        Branch::gpus([3, 4]),
    ]);
    node.update(|d| d.topology = board).unwrap();
    let pairs = [(0, 1), (0, 2), (1, 2), (1, 3), (3, 4), (4, 5)].map(|(a, b)| level(&client, a, b));
    assert_eq!(pairs, [0, 30, 30, 30, 10, 40]);
    let same: i32 =
        filled(|place| call!(client, nvmlDeviceOnSameBoard(gpu, client.gpu(1).unwrap(), place))).unwrap();
    assert_eq!(same, 1);
}

#[test]
fn yaml_says_it_in_lists_and_what_is_written_replaces_the_presets() {
    let text = "
topology:
  preset: bridges
  pcie: [[[0, 1], [2, 3]]]
  nvlinks: [{ gpus: [0, 1], links: 2 }, { gpus: [2, 3], links: 2, active: false }]
gpus: [{ model: h100-80gb-pcie, count: 4 }]
";
    let description = Description::parse(text).unwrap();
    let again = Description::parse(&description.to_yaml().unwrap()).unwrap();
    assert_eq!(again, description);
    let (_folder, node) = node(&description);
    let client = Client::of(&node);
    assert_eq!([level(&client, 0, 1), level(&client, 0, 2)], [10, 30]);
    assert_eq!([links(&client, 0, 1), links(&client, 2, 3)], [2, 0]);
    assert_eq!(active(&client, client.gpu(2).unwrap(), 0), Ok(0));
}

#[test]
fn impossible_topologies_are_refused_with_the_reason() {
    let reason = |topology: Topology| match Description::h100s(3).with_topology(topology).resolve() {
        Err(error @ NodeError::Invalid { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    };
    let written = Topology::default;
    assert!(reason(Preset::Dgx1.into()).contains("topology.preset: dgx1 has 8 GPUs, not 3"));
    assert!(reason(Preset::Bridges.into()).contains("3 are not pairs"));
    assert!(reason(written().nvlinks(0, 3, 1)).contains("topology.nvlinks[0]: 3 is none of the 3 GPUs"));
    assert!(reason(written().nvlinks(1, 1, 1)).contains("joins two GPUs, not 1 and itself"));
    assert!(reason(written().nvlinks(0, 1, 0)).contains("topology.nvlinks[0].links: 0 is not 1 to 18"));
    assert!(reason(written().nvlinks(0, 1, 10).nvlinks(0, 2, 9)).contains("GPU 0 has 19 NVLinks; 18 are"));
    assert!(reason(written().host_bridge([Branch::gpus([0, 0])])).contains("GPU 0 is in two places"));
    assert!(reason(written().host_bridge([Branch::Gpu(7)])).contains("topology.pcie: 7 is none of"));
    let bad_board = Topology { boards: vec![vec![0, 9]], ..written() };
    assert!(reason(bad_board).contains("topology.boards: 9 is none of"));
    let yaml = "topology: { pcie: [[one]] }\ngpus: [{ model: a30-24gb }]";
    let error = Description::parse(yaml).unwrap_err().to_string();
    assert!(error.contains("the index of a GPU, or a list of what is below a PCIe switch"), "{error}");
    let link = NvLinks { gpus: [0, 1], links: 1, active: true };
    assert_eq!(written().nvlinks(0, 1, 1).nvlinks, Some(vec![link]));
}
