//! RSA signatures as WeChat Pay and Alipay make them: SHA-256 with PKCS#1 v1.5, in Base64.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::rsa::KeyPair;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use secrecy::{ExposeSecret, SecretString};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

/// `rsaEncryption` of RFC 8017.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// No random numbers, or a key of an impossible size: nothing could be signed.
#[derive(Debug)]
pub(super) struct CannotSign;

/// Our private key.
pub(super) struct SigningKey(KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// Reads PEM, or the Base64 that is inside, as Alipay's tool writes it; PKCS#8 or PKCS#1.
    pub(super) fn parse(text: &SecretString) -> Result<Self, String> {
        let text = text.expose_secret();
        let der = match bare(text) {
            Some(der) => PrivateKeyDer::try_from(der).map_err(str::to_owned)?,
            None => PrivateKeyDer::from_pem_slice(text.as_bytes())
                .map_err(|_| "is no private key in PEM (BEGIN PRIVATE KEY or BEGIN RSA PRIVATE KEY)")?,
        };
        let pair = match &der {
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("is no RSA key".to_owned()),
        };
        pair.map(Self).map_err(|error| format!("is no RSA key of 2048 bits or more: {error}"))
    }

    /// The signature of `text`, in Base64.
    pub(super) fn sign(&self, text: &[u8]) -> Result<String, CannotSign> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        let signed = self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature);
        signed.map_err(|_| CannotSign)?;
        Ok(STANDARD.encode(signature))
    }
}

/// A gateway's public key.
pub(super) struct VerifyingKey {
    /// An `RSAPublicKey` of RFC 8017, in DER.
    der: Vec<u8>,
    /// Of the certificate, if the key came in one; hexadecimal, in capitals.
    serial: Option<String>,
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("serial", &self.serial).finish_non_exhaustive()
    }
}

impl VerifyingKey {
    /// Reads a certificate or a public key in PEM, or the Base64 that is inside the latter.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let unreadable =
            || "is neither a certificate nor a public key in PEM (BEGIN CERTIFICATE or BEGIN PUBLIC KEY)";
        if let Ok(pem) = CertificateDer::from_pem_slice(text.as_bytes()) {
            let certificate = Certificate::from_der(&pem).map_err(|_| unreadable())?.tbs_certificate;
            let info = certificate.subject_public_key_info.owned_to_ref();
            let serial = certificate.serial_number.as_bytes();
            let hex = serial.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02X}"));
            return Self::new(&info, Some(hex));
        }
        let der = match bare(text) {
            Some(der) => der,
            None => {
                SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).map_err(|_| unreadable())?.to_vec()
            }
        };
        Self::new(&SubjectPublicKeyInfoRef::from_der(&der).map_err(|_| unreadable())?, None)
    }

    fn new(info: &SubjectPublicKeyInfoRef<'_>, serial: Option<String>) -> Result<Self, String> {
        match info.subject_public_key.as_bytes() {
            Some(der) if info.algorithm.oid == RSA => Ok(Self { der: der.to_vec(), serial }),
            _ => Err("is no RSA key".to_owned()),
        }
    }

    /// The serial number of the certificate the key came in.
    pub(super) fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// Whether `signature`, in Base64, was made for `text` with the private key that belongs to this one.
    pub(super) fn verify(&self, text: &[u8], signature: &str) -> bool {
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.der);
        STANDARD.decode(signature).is_ok_and(|signature| key.verify(text, &signature).is_ok())
    }
}

/// A text that cannot be guessed and is not used again.
pub(super) fn nonce() -> Result<String, CannotSign> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CannotSign)?;
    Ok(hex::encode(bytes))
}

/// What is in the Base64 text, unless that is PEM; line breaks do not matter.
fn bare(text: &str) -> Option<Vec<u8>> {
    let text: String = text.split_ascii_whitespace().collect();
    STANDARD.decode(text).ok().filter(|der| !der.is_empty())
}
