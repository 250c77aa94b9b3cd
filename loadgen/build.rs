//! Notes what this tool is built with, for the manifest of its runs.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string());
    println!("cargo:rustc-env=LOADGEN_TOOLCHAIN={}", version.unwrap_or_else(|_| "unknown".into()));
    let profile = env::var("PROFILE").unwrap_or_default();
    let level = env::var("OPT_LEVEL").unwrap_or_default();
    println!("cargo:rustc-env=LOADGEN_PROFILE={profile} (opt-level {level})");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace('\x1f', " ");
    println!("cargo:rustc-env=LOADGEN_RUST_FLAGS={flags}");
    println!("cargo:rerun-if-changed=build.rs");
}
