//! The kubelet's half of the device plugin protocol.
//!
//! [`FakeKubelet`] serves `Registration` on a real socket in a folder of your choice and treats the plugins that
//! register as the kubelet does, down to its flaws. Tests, benchmarks and the demo run the real plugin against it; any
//! other device plugin can be run against it too.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use fake_kubelet::{FakeKubelet, PodSpec};
//!
//! let kubelet = FakeKubelet::start("/tmp/k").await?;
//! // … start the plugin with `kubelet.socket()` …
//! kubelet.wait_for_resource("nvidia.com/mig-2g.20gb").await?;
//! let spec = PodSpec::new("training").container("main").limit("nvidia.com/mig-2g.20gb", 1);
//! let pod = kubelet.run_pod(spec).await?;
//! assert!(pod["main"].envs.contains_key("NVIDIA_VISIBLE_DEVICES"));
//! kubelet.restart().await?;
//! kubelet.wait_for_registrations("nvidia.com/mig-2g.20gb", 2).await?;
//! kubelet.assert_no_crash();
//! # Ok(()) }
//! ```
//!
//! # What is faithful
//!
//! - A start serves podresources, reads the checkpoint, deletes every socket in the folder and then makes
//!   `kubelet.sock`. A [restart](FakeKubelet::restart) forgets all but what the checkpoint says.
//! - All pods are admitted again by a kubelet that starts, the API server's [later](FakeKubelet::api_pods_after); until
//!   then podresources answers without them. One whose devices are not what they have to be [fails](FakeKubelet::failed_pods).
//! - Inside `Register` the plugin's socket is dialled (again and again for 10 s) and asked for its options; only then
//!   comes the answer, and after it one `ListAndWatch` stream.
//! - The race of kubelets up to 1.36: clients are found by resource name, so a plugin that registers again before
//!   the end of its old stream was digested loses the resource.
//! - A stream that ends makes all devices unhealthy; after 5 minutes the resource is forgotten.
//! - One `Allocate` per container and resource, with one entry and IDs in no particular order; before it
//!   `GetPreferredAllocation`, if offered, whose answer is only a wish. A container that starts again gets the old
//!   answer.
//! - Where the real one would crash, it notes a [crash](FakeKubelet::crashes): fail the test with
//!   [`assert_no_crash`](FakeKubelet::assert_no_crash).
//! - The checkpoint is written, in the kubelet's form, with each list, each container that was given devices and each
//!   resource that was forgotten. What pods held that have ended drops out when `List` or an admission asks, and is in
//!   the file until the next write.
//! - With a [Topology Manager policy](TopologyPolicy) devices are aligned to NUMA nodes, container by container.
//!
//! # What is not
//!
//! A pod that was refused is not kept; the scheduler's sums are replaced by a look at the free healthy devices; a device
//! has one NUMA node at most; only the kubelet can check the checkpoint's checksum, and it is another one here;
//! `plugins_registry` and the Pods API of 1.37 are missing.
//!
//! # Rooms
//!
//! `kubelet` starts and stops it; `registration` answers plugins and follows their lists; `admission` runs pods, and
//! `readmission` those that it finds; `topology` aligns their devices; `manager` is what the kubelet knows, without clock
//! and sockets, `pod_devices` the part of it that `checkpoint` keeps; `behaviour` is what tests call.

mod admission;
pub mod api;
mod behaviour;
mod checkpoint;
mod client;
mod kubelet;
mod manager;
mod name;
mod pod;
mod pod_devices;
mod pod_resources;
mod readmission;
mod registration;
mod severable;
mod shared;
mod topology;
mod view;

pub use admission::AdmissionError;
pub use kubelet::{Builder, FakeKubelet, KubeletError};
pub use pod::{Container, Pod, PodSpec};
pub use topology::TopologyPolicy;
pub use view::{Calls, Capacity, Device, DeviceList, Registration, ResourceView, View};
