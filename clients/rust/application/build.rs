//! Generates messages and stubs from the contract as the application knows it, without the fields
//! and RPCs that were added since.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/contract");
    let contract = folder.join("contract.proto");
    println!("cargo:rerun-if-changed={}", contract.display());
    let files = protox::compile([contract], [folder])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
