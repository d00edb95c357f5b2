//! Generates the messages and stubs from the repository's protos; protoc is not needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../protos");
    println!("cargo:rerun-if-changed={}", protos.join("ml").display());
    let files = protox::Compiler::new([&protos])?
        .include_imports(true)
        .include_source_info(true)
        .open_files([
            "ml/mediapipe.proto",
            "ml/model_management.proto",
            "ml/transformers.proto",
        ])?
        .file_descriptor_set();
    tonic_prost_build::configure()
        .build_server(false)
        // Pictures and files are not copied when they are sent or received.
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
