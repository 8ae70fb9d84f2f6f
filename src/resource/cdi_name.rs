//! The names by which a container runtime finds what a CDI specification describes, as NVIDIA's plugin gives them.

const VENDOR: &str = "k8s.device-plugin.nvidia.com";

/// The class of GPUs and slices; a device's name is its UUID or index.
pub const GPU: &str = "gpu";

/// The class of IMEX channels; a device's name is the channel's number.
pub const IMEX_CHANNEL: &str = "imex-channel";

/// The device that stands for all others of its class.
pub const ALL: &str = "all";

/// What stands in a specification: vendor and class.
pub fn kind(class: &str) -> String {
    format!("{VENDOR}/{class}")
}

/// What stands in an answer: the kind and the device's name.
pub fn qualified(class: &str, device: &str) -> String {
    format!("{VENDOR}/{class}={device}")
}

/// The specification's file, as CDI's own library and so NVIDIA's plugin names it. A second file of the same kind would
/// make every name in both ambiguous, so the two plugins take turns on one.
pub fn file_name(class: &str) -> String {
    format!("{VENDOR}-{class}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_nvidias_plugin_answers_with() {
        assert_eq!(kind(GPU), "k8s.device-plugin.nvidia.com/gpu");
        assert_eq!(qualified(GPU, "MIG-1"), "k8s.device-plugin.nvidia.com/gpu=MIG-1");
        assert_eq!(qualified(GPU, "0:3"), "k8s.device-plugin.nvidia.com/gpu=0:3");
        assert_eq!(qualified(IMEX_CHANNEL, "0"), "k8s.device-plugin.nvidia.com/imex-channel=0");
        assert_eq!(file_name("gds"), "k8s.device-plugin.nvidia.com-gds.json");
    }
}
