//! A driver that holds the whole library while a call hangs.

use fake_nvml::{Description, Fault};

use crate::http::{ANYWHERE, Answer};
use crate::rig::{GPU, Rig, mig};

#[tokio::test]
async fn while_the_whole_library_hangs_lists_stay_and_allocate_answers_and_people_are_told() {
    let description = Description::h100s(3).with_mig(0, &["1g.10gb"; 2]);
    let rig = Rig::start(&description, &["--mig-strategy=mixed", ANYWHERE]).await;
    let resource = mig("1g.10gb");
    rig.wait_for_counts(&[(GPU, 2), (&resource, 2)]).await;
    let gpus = rig.node.gpus().unwrap();
    let hang = Fault::hang("nvmlDeviceGetMigMode").on_gpu(1).holding_library();
    rig.node.update(|node| node.faults = vec![hang]).unwrap();
    let told = |answer: &Answer| answer.body.contains("the driver does not answer");
    let ready = rig.plugin.wait_for("/readyz", told, "readiness to say so").await;
    assert_eq!(ready.status, 200, "a rolling update must go on: {ready:?}");
    assert!(ready.body.contains("what is offered stays as it was"), "{ready:?}");
    let alive = rig.plugin.get("/livez").await;
    assert_eq!(alive.status, 200, "a new process would hang as well: {alive:?}");
    assert!(rig.plugin.get("/").await.body.contains("The driver hangs:"));
    let json: serde_json::Value = serde_json::from_str(&rig.plugin.get("/devices").await.body).unwrap();
    assert!(json["plugin"]["noAnswer"].as_str().unwrap().contains("does not answer"), "{json}");
    rig.kubelet.allocate_ids(&resource, &[&gpus[0].mig[1].uuid]).await.unwrap();
    rig.kubelet.allocate_ids(GPU, &[&gpus[1].uuid]).await.unwrap();
    for resource in [GPU, &resource] {
        assert_eq!(rig.kubelet.lists(resource).len(), 1, "{resource}");
    }
    rig.node.update(|node| node.faults.clear()).unwrap();
    let answers = |answer: &Answer| answer.status == 200 && !told(answer);
    rig.plugin.wait_for("/readyz", answers, "an end of it").await;
    rig.wait_for_counts(&[(GPU, 2), (&resource, 2)]).await;
    rig.finish().await;
}
