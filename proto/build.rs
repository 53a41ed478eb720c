//! Compiles the schema in pure Rust, so that a build needs no `protoc`.

use std::path::PathBuf;

const FILES: [&str; 3] =
    ["lockstep/v1/meta.proto", "lockstep/v1/control.proto", "csi/v1/csi.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    for dir in ["lockstep", "csi"] {
        println!("cargo::rerun-if-changed={}", root.join(dir).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;
    tonic_prost_build::configure().bytes(".lockstep.v1").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
