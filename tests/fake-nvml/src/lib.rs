//! A `libnvidia-ml.so.1` that plays a GPU node with MIG.
