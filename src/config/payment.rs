//! The settings of the payment gateways. A gateway whose account is not set is off.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::Config;
use super::format::{list, masked, texts};
use super::url::{optional_url, plain_url};
use crate::ports::clock::SharedClock;
use crate::ports::payment_gateway::alipay::{Alipay, AlipayConfig};
use crate::ports::payment_gateway::sandbox::{Sandbox, SandboxConfig};
use crate::ports::payment_gateway::wechat::{WechatPay, WechatPayConfig};
use crate::ports::payment_gateway::{Gateways, InvalidSetting, PaymentGateway};

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PaymentConfig {
    /// No key of it has a default.
    #[serde(default)]
    pub sandbox: SandboxSettings,
    pub wechat: WechatSettings,
    pub alipay: AlipaySettings,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSettings {
    #[serde(serialize_with = "masked")]
    pub secret: Option<SecretString>,
    pub secret_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WechatSettings {
    #[serde(serialize_with = "plain_url")]
    pub base_url: String,
    pub mch_id: Option<String>,
    pub app_id: Option<String>,
    pub serial_no: Option<String>,
    #[serde(serialize_with = "masked")]
    pub private_key: Option<SecretString>,
    pub private_key_file: Option<PathBuf>,
    #[serde(serialize_with = "masked")]
    pub api_v3_key: Option<SecretString>,
    pub api_v3_key_file: Option<PathBuf>,
    #[serde(deserialize_with = "list", serialize_with = "texts")]
    pub platform_keys: Vec<PlatformKey>,
    #[serde(serialize_with = "optional_url")]
    pub notify_url: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AlipaySettings {
    #[serde(serialize_with = "plain_url")]
    pub base_url: String,
    pub app_id: Option<String>,
    pub seller_id: Option<String>,
    #[serde(serialize_with = "masked")]
    pub private_key: Option<SecretString>,
    pub private_key_file: Option<PathBuf>,
    pub public_key: Option<String>,
    pub public_key_file: Option<PathBuf>,
    #[serde(serialize_with = "optional_url")]
    pub notify_url: Option<String>,
}

/// `SERIAL=FILE`: a key of WeChat Pay, and where it is.
#[derive(Debug, Clone)]
pub struct PlatformKey {
    serial: String,
    file: PathBuf,
}

impl FromStr for PlatformKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((serial, file)) if !serial.is_empty() && !file.is_empty() => {
                Ok(Self { serial: serial.to_owned(), file: file.into() })
            }
            _ => {
                Err("expected the serial number and a file, as in \"PUB_KEY_ID_01=/etc/tombola/wechat.pem\"")
            }
        }
    }
}

impl fmt::Display for PlatformKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.serial, self.file.display())
    }
}

impl Config {
    /// The payment gateways that are set up.
    pub fn gateways(&self, clock: &SharedClock) -> Result<Gateways, InvalidSetting> {
        let mut others: Vec<Arc<dyn PaymentGateway>> = Vec::new();
        if let Some(config) = self.payment.wechat.to_config()? {
            others.push(Arc::new(WechatPay::new(&config, clock.clone())?));
        }
        if let Some(config) = self.payment.alipay.to_config()? {
            others.push(Arc::new(Alipay::new(&config, clock.clone())?));
        }
        let sandbox = self.sandbox(!others.is_empty())?;
        Ok(Gateways::new(sandbox.map(|config| Arc::new(Sandbox::new(&config))), others))
    }

    /// Whoever may pay in the sandbox pays nothing: unless it is asked for, it is for one's own machine, and not beside
    /// gateways that take money.
    fn sandbox(&self, others: bool) -> Result<Option<SandboxConfig>, InvalidSetting> {
        let currency = self.shop.currency;
        let config = match &self.payment.sandbox.secret {
            Some(secret) => SandboxConfig::new(secret.clone(), currency),
            None if self.is_embedded() && self.is_private() && !others => SandboxConfig::random(currency),
            None => return Ok(None),
        };
        config.map(Some).map_err(|problem| InvalidSetting::new("payment.sandbox.secret", problem))
    }
}

impl WechatSettings {
    fn to_config(&self) -> Result<Option<WechatPayConfig>, InvalidSetting> {
        let Self { mch_id, app_id, serial_no, private_key, api_v3_key, platform_keys, notify_url, .. } = self;
        let Some(mch_id) = mch_id else {
            let texts = [app_id, serial_no, notify_url].into_iter().any(Option::is_some);
            let secrets = [private_key, api_v3_key].into_iter().any(Option::is_some);
            return match texts || secrets || !platform_keys.is_empty() {
                true => Err(needed("payment.wechat.mch_id")),
                false => Ok(None),
            };
        };
        let read = |key: &PlatformKey| match std::fs::read_to_string(&key.file) {
            Ok(pem) => Ok((key.serial.clone(), pem)),
            Err(error) => {
                let problem = format!("cannot read {}: {error}", key.file.display());
                Err(InvalidSetting::new("payment.wechat.platform_keys", problem))
            }
        };
        Ok(Some(WechatPayConfig {
            base_url: self.base_url.clone(),
            app_id: app_id.clone().unwrap_or_default(),
            mch_id: mch_id.clone(),
            serial_no: serial_no.clone().unwrap_or_default(),
            private_key: private_key.clone().ok_or_else(|| needed("payment.wechat.private_key"))?,
            api_v3_key: api_v3_key.clone().ok_or_else(|| needed("payment.wechat.api_v3_key"))?,
            platform_keys: platform_keys.iter().map(read).collect::<Result<_, _>>()?,
            notify_url: notify_url.clone().unwrap_or_default(),
            ..WechatPayConfig::empty()
        }))
    }
}

impl AlipaySettings {
    fn to_config(&self) -> Result<Option<AlipayConfig>, InvalidSetting> {
        let Self { app_id, seller_id, private_key, public_key, notify_url, .. } = self;
        let Some(app_id) = app_id else {
            let texts = [seller_id, public_key, notify_url].into_iter().any(Option::is_some);
            return match texts || private_key.is_some() {
                true => Err(needed("payment.alipay.app_id")),
                false => Ok(None),
            };
        };
        Ok(Some(AlipayConfig {
            base_url: self.base_url.clone(),
            app_id: app_id.clone(),
            seller_id: seller_id.clone().unwrap_or_default(),
            private_key: private_key.clone().ok_or_else(|| needed("payment.alipay.private_key"))?,
            public_key: public_key.clone().unwrap_or_default(),
            notify_url: notify_url.clone().unwrap_or_default(),
            ..AlipayConfig::empty()
        }))
    }
}

fn needed(key: &'static str) -> InvalidSetting {
    InvalidSetting::new(key, "is needed, because other settings of this gateway are set")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::layers::{ConfigError, Loaded, Sources};
    use super::*;
    use crate::ports::clock::SystemClock;
    use crate::ports::payment_gateway::Channel;
    use crate::ports::payment_gateway::tests::keys::{MERCHANT, PLATFORM};

    fn load(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let environment =
            variables.iter().map(|(name, value)| (format!("TOMBOLA__{name}"), (*value).to_owned())).collect();
        Sources { environment, ..Sources::default() }.load()
    }

    #[rstest]
    #[case::at_home(&[], true)]
    #[case::for_all(&[("HTTP__ADDRESS", "0.0.0.0:1")], false)]
    #[case::behind_a_proxy(&[("HTTP__TRUSTED_PROXIES", "::1")], false)]
    #[case::not_embedded(&[("DATABASE__URL", "postgres://db/x")], false)]
    #[case::asked_for(&[("DATABASE__URL", "postgres://db/x"), ("PAYMENT__SANDBOX__SECRET", "s")], true)]
    fn nobody_pays_nothing_by_accident(#[case] variables: &[(&str, &str)], #[case] on: bool) {
        let clock: SharedClock = Arc::new(SystemClock);
        let gateways = load(variables).unwrap().config.gateways(&clock).unwrap();
        assert_eq!(gateways.get(Channel::Sandbox).is_some(), on);
        assert_eq!(gateways.sandbox().is_some(), on);
        assert!(gateways.get(Channel::Wechat).is_none() && gateways.get(Channel::Alipay).is_none());
    }

    #[rstest]
    #[case("PAYMENT__SANDBOX__SECRET", "", "`payment.sandbox.secret`", "is empty")]
    #[case("PAYMENT__WECHAT__APP_ID", "wx1", "`payment.wechat.mch_id`", "is needed")]
    #[case("PAYMENT__WECHAT__MCH_ID", "1", "`payment.wechat.private_key`", "is needed")]
    #[case("PAYMENT__WECHAT__PLATFORM_KEYS", "x", "`payment.wechat.platform_keys`", "the serial number")]
    #[case("PAYMENT__ALIPAY__SELLER_ID", "2088", "`payment.alipay.app_id`", "is needed")]
    #[case("PAYMENT__ALIPAY__APP_ID", "1", "`payment.alipay.private_key`", "is needed")]
    fn a_gateway_that_is_set_up_by_half_is_refused(
        #[case] variable: &str,
        #[case] value: &str,
        #[case] key: &str,
        #[case] problem: &str,
    ) {
        let error = load(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(problem), "{error}");
    }

    #[test]
    fn gateways_are_set_up_from_files() {
        // What main does for the server.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (ours, theirs) = (file("ours", &MERCHANT.private), file("theirs", &PLATFORM.public));
        let keys = format!("PUB_KEY_ID_01={theirs}");
        let key = file("key", "0123456789abcdef0123456789abcdef\n");
        let variables = [
            ("PAYMENT__WECHAT__MCH_ID", "1230000109"),
            ("PAYMENT__WECHAT__APP_ID", "wx1"),
            ("PAYMENT__WECHAT__SERIAL_NO", "40"),
            ("PAYMENT__WECHAT__PRIVATE_KEY_FILE", &ours),
            ("PAYMENT__WECHAT__API_V3_KEY_FILE", &key),
            ("PAYMENT__WECHAT__PLATFORM_KEYS", &keys),
            ("PAYMENT__WECHAT__NOTIFY_URL", "https://shop.example/wechat"),
            ("PAYMENT__ALIPAY__APP_ID", "2014"),
            ("PAYMENT__ALIPAY__SELLER_ID", "2088"),
            ("PAYMENT__ALIPAY__PRIVATE_KEY_FILE", &ours),
            ("PAYMENT__ALIPAY__PUBLIC_KEY_FILE", &theirs),
            ("PAYMENT__ALIPAY__NOTIFY_URL", "https://shop.example/alipay"),
        ];
        let loaded = load(&variables).unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let gateways = loaded.config.gateways(&clock).unwrap();
        let on = |channel| gateways.get(channel).is_some();
        assert!(on(Channel::Wechat) && on(Channel::Alipay) && !on(Channel::Sandbox));
        let shown = loaded.show().unwrap() + &format!("{loaded:?}") + &format!("{gateways:?}");
        assert!(!shown.contains("BEGIN PRIVATE KEY") && !shown.contains("0123456789abcdef"), "{shown}");
        assert!(shown.contains(&format!("payment.wechat.platform_keys = [\"{keys}\"]")), "{shown}");

        std::fs::remove_file(&theirs).unwrap();
        let error = load(&variables[..7]).unwrap_err().to_string();
        assert!(error.contains("`payment.wechat.platform_keys`") && error.contains("cannot read"), "{error}");
    }

    #[test]
    fn keys_of_gateways_are_never_shown() {
        let secret = "s3cret-of-the-sandbox";
        let loaded = load(&[("PAYMENT__SANDBOX__SECRET", secret)]).unwrap();
        let shown = loaded.show().unwrap() + &format!("{loaded:?}");
        assert!(shown.contains("payment.sandbox.secret = \"***\"") && !shown.contains(secret), "{shown}");
    }
}
