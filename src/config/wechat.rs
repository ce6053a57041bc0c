//! The settings of the WeChat mini program.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::Config;
use super::format::{list, masked, texts};
use super::url::plain_url;
use crate::notification::events::NotificationKind;
use crate::ports::notifier::Notifier;
use crate::ports::notifier::wechat::{Wechat, WechatConfig};
use crate::ports::payment_gateway::InvalidSetting;

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MiniProgramConfig {
    #[serde(serialize_with = "plain_url")]
    pub base_url: String,
    pub app_id: Option<String>,
    #[serde(serialize_with = "masked")]
    pub app_secret: Option<SecretString>,
    pub app_secret_file: Option<PathBuf>,
    #[serde(deserialize_with = "list", serialize_with = "texts")]
    pub templates: Vec<Template>,
}

/// `KIND=TEMPLATE`: the template of one kind of notification.
#[derive(Debug, Clone)]
pub struct Template {
    kind: NotificationKind,
    id: String,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, id) = text.split_once('=').unwrap_or((text, ""));
        match kind.parse() {
            Ok(kind) if !id.is_empty() => Ok(Self { kind, id: id.to_owned() }),
            _ => {
                let kinds: Vec<&str> = NotificationKind::ALL.iter().map(|kind| kind.word()).collect();
                Err(format!(
                    "expected a kind and a template, as in \"order_paid=pRx…\"; kinds are {}",
                    kinds.join(", ")
                ))
            }
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.id)
    }
}

impl Config {
    /// What tells users something besides the app, if it is set up.
    pub fn notifier(&self) -> Result<Option<Arc<dyn Notifier>>, InvalidSetting> {
        let MiniProgramConfig { base_url, app_id, app_secret, templates, .. } = &self.wechat;
        let needed = |key| Err(InvalidSetting::new(key, "must be set, too"));
        let (app_id, app_secret) = match (app_id, app_secret) {
            (Some(app_id), Some(app_secret)) => (app_id.clone(), app_secret.clone()),
            (Some(_), None) => return needed("wechat.app_secret"),
            (None, Some(_)) => return needed("wechat.app_id"),
            (None, None) if !templates.is_empty() => return needed("wechat.app_id"),
            (None, None) => return Ok(None),
        };
        if templates.is_empty() {
            return Ok(None);
        }
        let templates: HashMap<_, _> =
            templates.iter().map(|template| (template.kind, template.id.clone())).collect();
        let config = WechatConfig { base_url: base_url.clone(), app_id, app_secret, templates };
        let wechat =
            Wechat::new(config).map_err(|problem| InvalidSetting::new("wechat.base_url", problem))?;
        Ok(Some(Arc::new(wechat)))
    }
}
