//! What a client finds: GPUs, MIG devices, their IDs and profiles.

use fake_nvml::Description;

use crate::{client::Client, node};

#[test]
fn a_client_lists_gpus_and_mig_devices() {
    let (_folder, node) =
        node(&Description::h100s(2).with_mig(0, &["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"]));
    let client = Client::of(&node);
    let gpu = client.gpu(0).expect("GPU 0");
    assert_eq!(client.mig_mode(gpu), Ok((1, 1)));
    let migs = client.migs(gpu);
    let ids: Vec<_> = migs.iter().map(|mig| client.ids(*mig).expect("IDs")).collect();
    assert_eq!(ids, [(1, 0), (3, 0), (7, 0), (8, 0)]);
    assert_eq!(client.name(migs[0]).as_deref(), Ok("NVIDIA H100 80GB HBM3 MIG 3g.40gb"));
    let state = node.gpus().expect("the node's own view");
    for (mig, state) in migs.iter().zip(&state[0].mig) {
        assert_eq!(client.uuid(*mig).as_ref(), Ok(&state.uuid));
    }
    let other = client.gpu(1).expect("GPU 1");
    assert_eq!(client.mig_mode(other), Ok((0, 0)));
    assert!(client.migs(other).is_empty());
}
