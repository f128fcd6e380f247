//! Compiles the eBPF programs with clang into OUT_DIR, from where the loader includes them.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo:rerun-if-env-changed=CLANG");
    println!("cargo:rerun-if-changed=bpf");
    // libbpf's headers, of the very version that is linked.
    let headers = env::var("DEP_BPF_INCLUDE").expect("libbpf-sys tells where its headers are");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let architecture = target.split('-').next().unwrap_or_default();
    for name in ["guard", "unix"] {
        let object = out.join(format!("{name}.bpf.o"));
        let mut command = Command::new(&clang);
        // -mcpu=v3 (Linux 5.1): 32-bit jumps keep the programs small for the verifier.
        command
            .args(["-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", "-I", &headers])
            .arg("-I")
            .arg(format!("/usr/include/{architecture}-linux-gnu"))
            .arg("-c")
            .arg(format!("bpf/{name}.bpf.c"))
            .arg("-o")
            .arg(&object);
        let status = command.status().unwrap_or_else(|error| {
            panic!("running `{clang}` failed: {error}. Install clang (apt-get install clang, dnf install clang)")
        });
        assert!(status.success(), "compiling bpf/{name}.bpf.c failed");
        assert!(fs::metadata(&object).is_ok_and(|m| m.len() > 0), "clang wrote no {}", object.display());
    }
}
