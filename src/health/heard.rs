//! Of which GPUs errors are heard.

use crate::inventory::{EventRight, Gpu, Inventory};

/// Why none are, where the process may not hear them: the kernel driver drops every event of every kind.
pub const NOT_HEARD: &str = "this plugin has neither CAP_SYS_ADMIN nor access to mig/monitor \
    (/dev/nvidia-caps/nvidia-cap2), and without one of them the driver reports no error of a GPU that has slices";

/// Whether the driver reports the GPU's errors to this process, as far as its rights are concerned; `None` where those
/// cannot be told. Everybody hears of a GPU that has no instance.
pub fn is_heard(gpu: &Gpu, inventory: &Inventory) -> Option<bool> {
    if !has_instances(gpu, inventory) {
        return Some(true);
    }
    inventory.event_right.map(|right| right != EventRight::Nothing)
}

/// Whether there is an instance on the GPU, also one that could not be read.
pub fn has_instances(gpu: &Gpu, inventory: &Inventory) -> bool {
    let unread = || {
        let mut problems = inventory.problems.iter();
        problems.any(|problem| problem.left_out && problem.gpu == gpu.index && problem.mig_device.is_some())
    };
    !gpu.mig_devices.is_empty() || !gpu.empty_gpu_instances.is_empty() || !gpu.hidden.is_empty() || unread()
}
