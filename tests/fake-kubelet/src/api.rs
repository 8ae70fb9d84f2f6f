//! The generated types: `v1beta1` of the device plugin API here, `v1` of the podresources API in
//! [`podresources`].
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]

tonic::include_proto!("v1beta1");

/// The podresources API, `v1`.
pub mod podresources {
    tonic::include_proto!("v1");
}

/// The only version of the device plugin API that a kubelet accepts.
pub const VERSION: &str = "v1beta1";

/// The one word for a device that can be allocated.
pub const HEALTHY: &str = "Healthy";

/// The one word for a device that can't.
pub const UNHEALTHY: &str = "Unhealthy";
