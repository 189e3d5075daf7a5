//! The handles every job works with, opened once; settings that cannot work stop the program here.

use crate::api::Api;
use crate::config::Config;
use crate::embed::Embedder;
use crate::extract::Extractor;
use crate::fetch::Fetcher;
use crate::ground::Ground;
use crate::guard::Guard;
use crate::mcp::Clients;
use crate::oauth::Oauth;
use crate::objects::Objects;
use crate::scan::Scanner;
use crate::seal::Keys;
use crate::sql::Sql;
use sqlx::PgPool;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The handles.
pub struct Context {
    pub settings: Config,
    pub db: PgPool,
    pub objects: Objects,
    /// What may be reached from here.
    pub guard: Guard,
    pub fetcher: Fetcher,
    pub keys: Keys,
    pub oauth: Oauth,
    pub scanner: Scanner,
    pub extractor: Extractor,
    pub embedder: Embedder,
    /// Sessions with MCP servers; closed when the worker stops.
    pub mcp: Clients,
    pub api: Api,
    pub sql: Sql,
    pub ground: Ground,
    pub spool: Spool,
}

impl Context {
    /// Opens every handle. `program` is the gristmill binary, which runs extraction children.
    pub async fn open(settings: Config, program: PathBuf) -> anyhow::Result<Self> {
        let db = crate::store::connect(&settings.database).await?;
        let embedder = Embedder::open(&settings.embed, &settings.embedded.deps_dir).await?;
        Self::with(settings, program, db, embedder)
    }

    /// [`Context::open`] around a pool and an embedder that are open already.
    pub fn with(settings: Config, program: PathBuf, db: PgPool, embedder: Embedder) -> anyhow::Result<Self> {
        let guard = Guard::new(&settings.fetch.allow);
        Ok(Self {
            objects: Objects::new(&settings.objects)?,
            oauth: Oauth::new(&guard)?,
            mcp: Clients::new(&settings.mcp, &guard)?,
            api: Api::new(&settings.api, guard.clone())?,
            sql: Sql::new(&settings.sql, guard.clone(), db.clone()),
            ground: Ground::new(&settings.web_search)?,
            guard,
            fetcher: Fetcher::new(&settings.fetch)?,
            keys: Keys::open(&settings.seal)?,
            scanner: Scanner::new(&settings.scan)?,
            extractor: Extractor::new(&settings.extract, program),
            spool: Spool::open(&settings.embedded.data_dir.join("spool"))?,
            embedder,
            db,
            settings,
        })
    }
}

/// Room on the local disk for the files of jobs at work.
///
/// Accepted race: two processes that start at once may both remove a dead one's room.
pub struct Spool {
    own: PathBuf,
}

impl Spool {
    fn open(root: &Path) -> std::io::Result<Self> {
        let own = root.join(std::process::id().to_string());
        std::fs::create_dir_all(&own)?;
        for entry in std::fs::read_dir(root)?.flatten() {
            // A room is named for its process; one that was killed could not clear up.
            let alive = entry.file_name().to_str().is_some_and(|pid| Path::new("/proc").join(pid).exists());
            if !alive && Path::new("/proc/self").exists() {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
        Ok(Self { own })
    }

    /// A folder that is removed when the job lets it go.
    pub fn room(&self) -> std::io::Result<TempDir> {
        tempfile::tempdir_in(&self.own)
    }
}
