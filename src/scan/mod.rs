//! Is this file what it claims to be, and is it safe to parse?
//!
//! Before it: a local file whose bytes are pinned. After it: a report that a job turns into a
//! verdict row; nothing is parsed for its text without one. In order: type truth, the built-in
//! rules over every inflated byte within limits, then clamd where one is configured. "Not
//! scanned" is never "clean".

mod budget;
mod claim;
mod clamd;
mod kind;
mod mail;
mod ole;
mod pdf;
mod rules;
mod text;
mod unpack;

pub use clamd::ClamdError;
pub use rules::RuleError;

use crate::config::{self, Mismatch};
use budget::{Budget, Halt};
use claim::Truth;
use clamd::{Address, Verdict};
use kind::{Family, Kind, Shape};
use rules::{Rules, Scope};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use unpack::Walker;

/// Longest that one file may keep clamd busy.
const CLAMD_PATIENCE: Duration = Duration::from_mins(2);

/// What a file says of itself.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    pub name: Option<String>,
    pub mime: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Clean,
    Infected {
        signature: String,
    },
    /// Not looked at to the end, so not clean: encrypted, damaged, or beyond a limit.
    Unscannable {
        reason: String,
    },
    /// Its content is not what it claims. Depends on the claims, so it is not cached by sha256.
    Refused {
        reason: String,
    },
}

/// The verdict on one file.
#[derive(Debug, Clone)]
pub struct Report {
    pub outcome: Outcome,
    pub engine: String,
    pub signature_version: String,
    /// Ceilings that were reached, and parts that were passed over knowingly.
    pub limits_hit: Vec<String>,
    /// By content, made finer by the name within the same family; what the extractor trusts.
    pub detected_mime: String,
    pub size: u64,
}

/// Who judges: with a file's sha256 this is the key under which a verdict is cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    pub name: String,
    /// Changes with the rules, the limits and clamd's database.
    pub signature_version: String,
}

/// What type truth alone says, for a verdict that comes from the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub detected_mime: String,
    /// Why the file is refused, if it is.
    pub refusal: Option<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(
        "scan.required is true but scan.clamd is empty: give clamd's address, or set scan.required to false"
    )]
    ClamdMissing,
    #[error("scan.clamd is neither `host:port` nor `unix:/path`: {0:?}")]
    ClamdAddress(String),
    #[error(transparent)]
    Rules(#[from] RuleError),
    #[error(transparent)]
    Clamd(#[from] ClamdError),
    #[error("the file could not be read: {0}")]
    File(#[from] io::Error),
}

impl ScanError {
    /// Whether a later attempt may give a verdict: the file stays SCANNING.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Clamd(_) | Self::File(_))
    }
}

/// The scanner: built-in rules always, clamd where configured.
#[derive(Debug, Clone)]
pub struct Scanner {
    settings: Arc<config::Scan>,
    rules: Arc<Rules>,
    clamd: Option<Address>,
    patience: Duration,
}

/// What the built-in pass found, before clamd is asked.
struct Inspection {
    outcome: Outcome,
    limits_hit: Vec<String>,
    detected_mime: String,
    size: u64,
}

impl Scanner {
    /// Refuses settings under which nothing could ever become clean.
    pub fn new(settings: &config::Scan) -> Result<Self, ScanError> {
        let clamd = match settings.clamd.trim() {
            "" if settings.required => return Err(ScanError::ClamdMissing),
            "" => None,
            text => Some(Address::parse(text).ok_or_else(|| ScanError::ClamdAddress(text.to_owned()))?),
        };
        let rules = Arc::new(Rules::load()?);
        Ok(Self { settings: Arc::new(settings.clone()), rules, clamd, patience: CLAMD_PATIENCE })
    }

    /// Waits only so long for clamd.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Who would judge now. With clamd configured this asks it for its version.
    pub async fn engine(&self) -> Result<Engine, ScanError> {
        let own = self.own_version();
        let Some(clamd) = &self.clamd else {
            return Ok(Engine { name: "gristmill".to_owned(), signature_version: own });
        };
        let theirs = clamd.version(self.patience).await?;
        let signature_version = format!("{own} {theirs}");
        Ok(Engine { name: "gristmill+clamd".to_owned(), signature_version })
    }

    /// Type truth alone: cheap, and to be asked for every file, also when the verdict on its
    /// bytes comes from the cache, because it depends on what the file claims.
    pub async fn identify(&self, file: &Path, claims: &Claims) -> Result<Identity, ScanError> {
        let (path, claims, this) = (file.to_owned(), claims.clone(), self.clone());
        let judged = tokio::task::spawn_blocking(move || {
            let mut file = File::open(path)?;
            let (content, _) = kind::detect(&mut file, this.settings.max_members)?;
            let detected_mime = claim::detected_mime(content, &claims);
            Ok(Identity { detected_mime, refusal: this.refusal(content, &claims) })
        });
        judged.await.unwrap_or_else(|stumble| Err(io::Error::other(stumble))).map_err(ScanError::File)
    }

    /// Judges the file. An error means no verdict.
    pub async fn scan(&self, file: &Path, claims: &Claims) -> Result<Report, ScanError> {
        let engine = self.engine().await?;
        let (path, its_claims, this) = (file.to_owned(), claims.clone(), self.clone());
        let inspected = tokio::task::spawn_blocking(move || this.inspect(&path, &its_claims)).await;
        let mut seen = match inspected {
            Ok(seen) => seen?,
            // A parser of ours panicked: the file is at fault, and stays unread.
            Err(stumble) => Inspection {
                outcome: Outcome::Unscannable { reason: format!("the scanner stumbled: {stumble}") },
                limits_hit: vec!["panic".to_owned()],
                detected_mime: "application/octet-stream".to_owned(),
                size: tokio::fs::metadata(file).await?.len(),
            },
        };
        if let (Outcome::Clean, Some(clamd)) = (&seen.outcome, &self.clamd) {
            seen.outcome = self.ask(clamd, file, &mut seen).await?;
        }
        Ok(Report {
            outcome: seen.outcome,
            engine: engine.name,
            signature_version: engine.signature_version,
            limits_hit: seen.limits_hit,
            detected_mime: seen.detected_mime,
            size: seen.size,
        })
    }

    /// clamd's word counts as clean only for bytes inside the limits checked before.
    async fn ask(&self, clamd: &Address, file: &Path, seen: &mut Inspection) -> Result<Outcome, ScanError> {
        let ceiling = self.settings.clamd_max_bytes;
        if seen.size > ceiling {
            seen.limits_hit.push("clamd_max_bytes".to_owned());
            let reason = format!("{} bytes are more than clamd accepts ({ceiling})", seen.size);
            return Ok(Outcome::Unscannable { reason });
        }
        Ok(match clamd.scan(file, self.patience).await? {
            Verdict::Ok => Outcome::Clean,
            Verdict::Infected(signature) => Outcome::Infected { signature },
            Verdict::Unscannable(reason) => {
                seen.limits_hit.push(format!("clamd:{reason}"));
                Outcome::Unscannable { reason: format!("clamd: {reason}") }
            }
        })
    }

    fn inspect(&self, path: &Path, claims: &Claims) -> Result<Inspection, ScanError> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let (content, shape) = kind::detect(&mut file, self.settings.max_members)?;
        let budget = Budget::new(&self.settings, size);
        let mut walker = Walker { rules: &self.rules, budget, notes: Vec::new() };
        let findings = walker.file(&mut file, shape, scope(content, shape));
        let mut limits_hit: Vec<String> = walker.notes.iter().map(|note| (*note).to_owned()).collect();
        limits_hit.dedup();
        let refusal = self.refusal(content, claims);
        let outcome = match (findings, refusal) {
            (Err(Halt::Io(error)), _) => return Err(error.into()),
            (Err(Halt::Found(signature)), _) => Outcome::Infected { signature },
            (_, Some(reason)) => Outcome::Refused { reason },
            (Err(Halt::Limit(limit)), None) => {
                limits_hit.push(limit.word().to_owned());
                Outcome::Unscannable { reason: format!("beyond the archive limit {}", limit.word()) }
            }
            (Err(Halt::Opaque(reason)), None) => Outcome::Unscannable { reason },
            (Ok(()), None) => Outcome::Clean,
        };
        Ok(Inspection { outcome, limits_hit, detected_mime: claim::detected_mime(content, claims), size })
    }

    fn refusal(&self, content: Kind, claims: &Claims) -> Option<String> {
        let mime = content.mime;
        match (claim::judge(content, claims), self.settings.mismatch) {
            (Truth::Masquerade { declared }, _) => {
                Some(format!("declared as {declared}, but it is something that runs ({mime})"))
            }
            (Truth::Differs { declared }, Mismatch::Refuse) => {
                Some(format!("declared as {declared}, but its content is {mime}"))
            }
            _ => None,
        }
    }

    /// The rules and the limits together: a verdict under other limits is another verdict.
    fn own_version(&self) -> String {
        let s = &self.settings;
        let limits = format!(
            "{} {} {} {} {} {}",
            s.max_total_bytes,
            s.max_member_bytes,
            s.max_members,
            s.max_ratio,
            s.max_nesting,
            s.clamd_max_bytes
        );
        let limits = hex::encode(&Sha256::digest(limits)[..4]);
        format!("{}/{}/{limits}", env!("CARGO_PKG_VERSION"), self.rules.version)
    }
}

fn scope(content: Kind, shape: Shape) -> Scope {
    match (shape, content.family) {
        (Shape::Pdf, _) => Scope::Pdf,
        (_, Family::Ooxml | Family::Ole | Family::Odf) => Scope::Office,
        (_, Family::Markup) => Scope::Markup,
        _ => Scope::Any,
    }
}

#[cfg(test)]
mod tests;
