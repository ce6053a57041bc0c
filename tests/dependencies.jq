# Reads `cargo metadata`: what a dependency may be, and which ones may not come back. Names those that break it.

# Permissive licences only: whoever embeds the server in a product owes nothing but a notice.
def permissive: IN(
  "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
  "CDLA-Permissive-2.0", "ISC", "MIT", "Unicode-3.0", "Unlicense", "Zlib");

# `(MIT OR Apache-2.0) AND Unicode-3.0`; once a slash meant OR.
def is_permissive: gsub("[()]"; "") | split(" AND ") | all(.[]; [splits(" OR | */ *")] | any(.[]; permissive));

# Names, how their versions begin, and why not.
def unwanted:
  ["aws-lc-sys", "", "ring is the only crypto provider; aws-lc needs CMake and a second C build"],
  ["openssl-sys", "", "ring is the only crypto provider; a build needs Rust and a C compiler only"],
  ["rsa", "", "RUSTSEC-2023-0071: its timing leaks the private key, and there is no fixed version"],
  ["actix-governor", "", "GPL-3.0; rate limits are built on governor"],
  ["h2", "0.3.", "RUSTSEC-2026-0258; HTTP/2 belongs to the proxy in front"];

def crates_io: "registry+https://github.com/rust-lang/crates.io-index";

def faults:
  . as $crate
  | (unwanted as [$name, $version, $why] | select($crate | .name == $name and (.version | startswith($version))) | $why),
    (select(.license // "" | is_permissive | not) | "its licence is \(.license)"),
    (select((.source // crates_io) != crates_io) | "it comes from \(.source)");

.packages[] | "\(.name) \(.version): \(faults)"
