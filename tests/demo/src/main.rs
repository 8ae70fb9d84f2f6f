//! Shows the plugin's main job on a machine without a GPU.

fn main() {}
