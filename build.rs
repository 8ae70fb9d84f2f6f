//! Compiles the kubelet's protobuf files with protox, so that no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/deviceplugin/v1beta1/api.proto", "proto/podresources/v1/api.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
        let descriptors = protox::compile([file], ["proto"])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
