//! Lets the linker leave the N-API symbols to Node, and lay the functions side by side that run all the time.

/// Written by `scripts/hot-functions`.
const HOT_FUNCTIONS: &str = "link/hot-functions.ld";

fn main() {
    napi_build::setup();
    println!("cargo:rerun-if-changed={HOT_FUNCTIONS}");
    // In a debug build nobody counts pages.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let here = env!("CARGO_MANIFEST_DIR");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-T,{here}/{HOT_FUNCTIONS}");
    }
}
