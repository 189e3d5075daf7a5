//! Settings: `config/default.toml`, then a file, then the environment; unknown keys are refused.

use secrecy::SecretString;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const DEFAULTS: &str = include_str!("../config/default.toml");
const SECRETS: [&str; 4] = ["database.url", "objects.access_key", "objects.secret_key", "seal.keys"];
const SEALING_KEYS: &str = "GRISTMILL__SEAL__KEYS__";

/// Why the settings were not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration refused: {0}")]
    Refused(#[from] config::ConfigError),
    #[error("`{key}` is a secret: set {variable} in the environment instead of writing it into {}", file.display())]
    SecretInFile { key: &'static str, variable: String, file: PathBuf },
}

/// Everything that can be set, one struct a section, named for the module that takes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub database: Database,
    pub embedded: Embedded,
    pub objects: Objects,
    pub queue: Queue,
    pub fetch: Fetch,
    pub scan: Scan,
    pub extract: Extract,
    pub chunk: Chunk,
    pub embed: Embed,
    pub search: Search,
    pub tools: Tools,
    pub mcp: Mcp,
    pub api: Api,
    pub sql: Sql,
    pub web_search: WebSearch,
    pub schedules: Schedules,
    pub tidy: Tidy,
    pub rescan: Rescan,
    pub seal: Seal,
    pub log: Log,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    pub url: Option<SecretString>,
    pub role: String,
    pub max_connections: u32,
    pub connect_seconds: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {
    pub data_dir: PathBuf,
    pub deps_dir: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objects {
    pub endpoint: String,
    pub region: String,
    pub bucket: String,
    pub path_style: bool,
    pub tenant_prefix: String,
    pub max_bytes: u64,
    pub access_key: Option<SecretString>,
    pub secret_key: Option<SecretString>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    pub lease_seconds: f64,
    pub poll_ms: u64,
    pub concurrency: usize,
    pub workspace_cap: u32,
    pub backoff_seconds: f64,
    pub backoff_ceiling_seconds: f64,
    pub grace_seconds: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fetch {
    pub max_bytes: u64,
    pub connect_seconds: u64,
    pub total_seconds: u64,
    pub max_redirects: usize,
    pub allow: Vec<ipnet::IpNet>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    pub required: bool,
    pub clamd: String,
    pub clamd_max_bytes: u64,
    pub max_total_bytes: u64,
    pub max_member_bytes: u64,
    pub max_members: u64,
    pub max_ratio: u64,
    pub max_nesting: u32,
    pub mismatch: Mismatch,
}

/// What to do with a file whose content contradicts its declared type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mismatch {
    Refuse,
    TrustContent,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extract {
    pub children: usize,
    pub memory_bytes: u64,
    pub cpu_seconds: u64,
    pub wall_seconds: u64,
    pub max_text_bytes: u64,
    pub ocr: Ocr,
    pub ocr_languages: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ocr {
    Auto,
    Off,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    pub size: usize,
    pub overlap: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    pub model: String,
    pub onnxruntime: String,
    pub sessions: usize,
    pub threads: usize,
    pub batch: usize,
    pub checkpoint: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    pub top_k: u32,
    pub candidates: u32,
    pub fusion: Fusion,
    pub alpha: f64,
    pub rrf_k: u32,
    pub ef_search: u32,
    pub per_document: u32,
}

/// How the dense and the lexical ranking become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    Convex,
    ReciprocalRank,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    pub ask: Ask,
    pub approval_hours: u32,
    pub parallel_calls: u32,
    pub idle_seconds: u32,
    pub total_seconds: u32,
    pub inline_bytes: usize,
    pub view_chars: usize,
    pub page_chars: usize,
}

/// Which calls a person is asked about where no policy of the workspace says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    Never,
    Effectful,
    Always,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mcp {
    pub initialise_seconds: f64,
    pub request_seconds: f64,
    pub connect_seconds: f64,
    pub idle_seconds: f64,
    pub message_bytes: usize,
    pub output_bytes: usize,
    pub max_children: usize,
    pub child_memory_bytes: u64,
    pub child_file_bytes: u64,
    pub child_open_files: u64,
    pub path: String,
    pub review: Review,
    /// The operator's catalogue.
    #[serde(default)]
    pub servers: Vec<CatalogueServer>,
}

/// What becomes of a tool's definition that is new or has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Review {
    /// What a server has at its first sync is approved; later ones wait.
    TrustOnFirstUse,
    ReviewAll,
    /// Tools that only read, where the operator believes the server's word on it, are approved.
    AutoForReadOnly,
}

/// A server that connections may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueServer {
    pub name: String,
    #[serde(default)]
    pub transport: Transport,
    pub command: Option<String>,
    #[serde(default)]
    pub arguments: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, EnvValue>,
    pub url: Option<String>,
    #[serde(default = "nothing")]
    pub parameters: serde_json::Value,
    #[serde(default)]
    pub believe_hints: bool,
}

fn nothing() -> serde_json::Value {
    serde_json::json!({})
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    #[default]
    Stdio,
    StreamableHttp,
    Sse,
}

/// A variable of a server's environment: a text that is no secret, or the place of the credential.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(untagged)]
pub enum EnvValue {
    Text(String),
    Credential { credential: bool },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    pub connect_seconds: u64,
    pub total_seconds: u64,
    pub max_bytes: u64,
    pub max_redirects: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sql {
    pub connect_seconds: f64,
    pub query_seconds: f64,
    pub max_rows: usize,
    pub max_bytes: usize,
    pub max_wire_bytes: u64,
    pub refuse_powerful_roles: bool,
    pub sqlite_folder: String,
    pub sqlite_memory_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebSearch {
    pub gemini_url: String,
    pub openai_url: String,
    pub anthropic_url: String,
    pub grok_url: String,
    pub connect_seconds: u64,
    pub total_seconds: u64,
    pub max_bytes: u64,
    pub max_searches: u32,
    pub max_tokens: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedules {
    pub lead: bool,
    pub poll_seconds: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tidy {
    pub done_hours: u32,
    pub dead_days: u32,
    pub events_days: u32,
    pub upload_hours: u32,
    pub stuck_minutes: u32,
    pub orphan_hours: u32,
    pub orphan_prefixes: Vec<String>,
    pub batch: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescan {
    pub after_days: u32,
    pub batch: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    pub current: String,
    pub unnamed: String,
    pub file: PathBuf,
    /// From the environment alone.
    #[serde(default)]
    pub keys: BTreeMap<String, SecretString>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}

impl Config {
    /// Reads the defaults, then `file`, then the process environment.
    ///
    /// `DATABASE_URL` is the usual name for `GRISTMILL__DATABASE__URL` and yields to it.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        #[expect(clippy::disallowed_methods, reason = "configuration is where the environment is read")]
        let environment = std::env::vars().collect();
        Self::from_parts(file, environment)
    }

    fn from_parts(
        file: Option<&Path>,
        mut environment: HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = file {
            let source = config::File::from(path).format(config::FileFormat::Toml);
            refuse_secrets(path, &source)?;
            builder = builder.add_source(source);
        }
        if let Some(url) = environment.get("DATABASE_URL") {
            builder = builder.set_default("database.url", url.as_str())?;
        }
        for (id, key) in sealing_keys(&mut environment) {
            builder = builder.set_override(format!("seal.keys.{id}"), key)?;
        }
        let variables = config::Environment::with_prefix("GRISTMILL")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("fetch.allow")
            .with_list_parse_key("tidy.orphan_prefixes")
            .source(Some(environment));
        Ok(builder.add_source(variables).build()?.try_deserialize()?)
    }
}

/// Takes the keys out of the environment: its reader would make a number of a key of digits.
fn sealing_keys(environment: &mut HashMap<String, String>) -> Vec<(String, String)> {
    let found: Vec<_> = environment.keys().filter(|name| name.starts_with(SEALING_KEYS)).cloned().collect();
    let taken = found.into_iter().filter_map(|name| environment.remove_entry(&name));
    taken.map(|(name, key)| (name[SEALING_KEYS.len()..].to_lowercase(), key)).collect()
}

fn refuse_secrets(
    path: &Path,
    source: &config::File<config::FileSourceFile, config::FileFormat>,
) -> Result<(), ConfigError> {
    let file = config::Config::builder().add_source(source.clone()).build()?;
    for key in SECRETS {
        if file.get_string(key).is_ok() || file.get_table(key).is_ok() {
            let variable = format!("GRISTMILL__{}", key.to_uppercase().replace('.', "__"));
            return Err(ConfigError::SecretInFile { key, variable, file: path.into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn environment(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn defaults_hold_every_key_but_secrets() {
        let config = Config::from_parts(None, environment(&[])).unwrap();
        assert!(config.database.url.is_none());
        assert_eq!(config.queue.lease_seconds, 30.0);
    }

    #[test]
    fn the_environment_wins_and_secrets_stay_hidden() {
        let config = Config::from_parts(
            None,
            environment(&[
                ("GRISTMILL__QUEUE__CONCURRENCY", "9"),
                ("GRISTMILL__FETCH__ALLOW", "10.0.0.0/8,127.0.0.1/32"),
                ("DATABASE_URL", "postgres://user:hunter2@db/x"),
            ]),
        )
        .unwrap();
        assert_eq!(config.queue.concurrency, 9);
        assert_eq!(config.fetch.allow.len(), 2);
        assert!(config.database.url.as_ref().unwrap().expose_secret().contains("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn sealing_keys_come_by_their_ids_and_one_of_digits_stays_text() {
        let digits = "07".repeat(32);
        let variables = [("GRISTMILL__SEAL__KEYS__K1", &*digits), ("GRISTMILL__SEAL__CURRENT", "k1")];
        let config = Config::from_parts(None, environment(&variables)).unwrap();
        assert_eq!(config.seal.keys["k1"].expose_secret(), digits);
        assert!(!format!("{config:?}").contains("0707"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name() {
        let wrong = Config::from_parts(None, environment(&[("GRISTMILL__QUEUE__LEASE", "1")]));
        assert!(wrong.unwrap_err().to_string().contains("lease"));
    }

    #[test]
    fn a_secret_in_a_file_is_refused_and_the_variable_named() {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), "[objects]\nsecret_key = \"x\"\n").unwrap();
        let wrong = Config::from_parts(Some(file.path()), environment(&[])).unwrap_err();
        assert!(wrong.to_string().contains("GRISTMILL__OBJECTS__SECRET_KEY"), "{wrong}");
        std::fs::write(file.path(), "[seal.keys]\nk1 = \"x\"\n").unwrap();
        let wrong = Config::from_parts(Some(file.path()), environment(&[])).unwrap_err();
        assert!(wrong.to_string().contains("GRISTMILL__SEAL__KEYS"), "{wrong}");
    }
}
