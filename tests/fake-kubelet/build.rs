//! Compiles the kubelet's protobuf files with protox, so that no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    for file in ["deviceplugin/v1beta1/api.proto", "podresources/v1/api.proto"] {
        let path = format!("{root}/{file}");
        println!("cargo::rerun-if-changed={path}");
        let descriptors = protox::compile([path], [root])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
