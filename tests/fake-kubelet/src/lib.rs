//! The kubelet's half of the device plugin protocol.
