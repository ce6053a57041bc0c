//! The `tombola` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only if a provider is there already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tombola::cli::run()
}
