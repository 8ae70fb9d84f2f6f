//! Kubernetes device plugin for NVIDIA MIG.
