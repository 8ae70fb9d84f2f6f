//! Kubernetes device plugin for NVIDIA MIG.

pub mod inventory;
