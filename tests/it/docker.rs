//! What `docker/` sets must be settings of this server.

use std::process::Command;

const COMPOSE: &str = include_str!("../../docker/compose.yaml");
const DOCKERFILE: &str = include_str!("../../docker/Dockerfile");

#[test]
fn the_settings_are_accepted() {
    let composed = COMPOSE.lines().filter_map(|line| line.trim().split_once(": "));
    let built = DOCKERFILE.lines().filter_map(|line| line.strip_prefix("ENV ")?.split_once('='));
    let settings: Vec<(&str, String)> = composed
        .chain(built)
        .filter(|(name, _)| name.starts_with("TOMBOLA__"))
        .map(|(name, value)| (name, with_secrets(value.trim_matches('"'))))
        .collect();
    assert!(settings.len() > 4, "{settings:?}");
    let checked = Command::new(env!("CARGO_BIN_EXE_tombola"))
        .args(["config", "check"])
        .env_clear()
        .envs(settings)
        .output()
        .expect("the server's binary");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// The text with a value for each `${NAME:?…}`.
fn with_secrets(text: &str) -> String {
    let mut parts = text.split("${");
    let before = parts.next().unwrap_or_default().to_owned();
    parts.fold(before, |text, part| {
        let (_, after) = part.split_once('}').expect("a closing brace");
        text + &"5".repeat(64) + after
    })
}
