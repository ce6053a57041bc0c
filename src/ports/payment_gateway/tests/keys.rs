//! Keys and signatures made by the `openssl` command: a second opinion on everything ours does.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::NamedTempFile;

pub(crate) struct Key {
    pub(crate) private: String,
    pub(crate) public: String,
}

/// Ours.
pub(crate) static MERCHANT: LazyLock<Key> = LazyLock::new(Key::generate);
/// The gateway's.
pub(crate) static PLATFORM: LazyLock<Key> = LazyLock::new(Key::generate);
/// Somebody else's.
pub(crate) static STRANGER: LazyLock<Key> = LazyLock::new(Key::generate);

impl Key {
    fn generate() -> Self {
        let args = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        let private = text(openssl(&args, b""));
        let public = text(openssl(&["pkey", "-pubout"], private.as_bytes()));
        Self { private, public }
    }

    /// The same private key in PKCS#1.
    pub(crate) fn traditional(&self) -> String {
        text(openssl(&["rsa", "-traditional"], self.private.as_bytes()))
    }

    /// A certificate with `serial` for the public key.
    pub(crate) fn certificate(&self, serial: &str) -> String {
        let key = file(self.private.as_bytes());
        let (key, serial) = (key.path().to_str().unwrap(), format!("0x{serial}"));
        let args = ["req", "-x509", "-key", key, "-subj", "/CN=Gateway", "-set_serial", &serial];
        text(openssl(&args, b""))
    }

    /// A signature in Base64.
    pub(crate) fn sign(&self, message: &[u8]) -> String {
        self.sign_with("-sha256", message)
    }

    /// A signature over SHA-1, as Alipay's old "RSA" is.
    pub(crate) fn sign_weakly(&self, message: &[u8]) -> String {
        self.sign_with("-sha1", message)
    }

    fn sign_with(&self, digest: &str, message: &[u8]) -> String {
        let key = file(self.private.as_bytes());
        STANDARD.encode(openssl(&["dgst", digest, "-sign", key.path().to_str().unwrap()], message))
    }

    /// Whether `signature` is one of this key for `message`.
    pub(crate) fn signed(&self, message: &[u8], signature: &str) -> bool {
        let (key, signature) = (file(self.public.as_bytes()), file(&STANDARD.decode(signature).unwrap()));
        let (key, signature) = (key.path().to_str().unwrap(), signature.path().to_str().unwrap());
        run(&["dgst", "-sha256", "-verify", key, "-signature", signature], message).0
    }
}

/// What is between the lines of a PEM file.
pub(crate) fn inside(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

pub(crate) fn openssl(args: &[&str], input: &[u8]) -> Vec<u8> {
    let (succeeded, output) = run(args, input);
    assert!(succeeded, "openssl {args:?} failed");
    output
}

fn run(args: &[&str], input: &[u8]) -> (bool, Vec<u8>) {
    let mut command = Command::new("openssl");
    let command = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("the openssl command is needed for this test");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), output.stdout)
}

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}
