//! The command line: every way in that needs no program of one's own.

pub mod bench;
mod conformance;
mod demo;
mod doctor;
pub mod eval;
mod house;
mod ingest;
mod jobs;
mod limits;
mod operate;
mod schedules;
mod search;
mod table;
mod tool;
mod tool_credential;
mod tool_login;
mod tool_review;
mod tool_server;
mod verify;
mod watch;

use crate::config::{Config, LogFormat};
use anyhow::Context as _;
use clap::{Parser, Subcommand};
use house::House;
use std::path::PathBuf;
use std::process::ExitCode;

/// The background worker of a chat product, inside its own Postgres.
#[derive(Debug, Parser)]
#[command(
    name = "gristmill",
    version,
    about = "The background worker of a chat product, inside its own Postgres",
    arg_required_else_help = true
)]
pub struct Command {
    /// Settings in TOML; every key and its default stand in config/default.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs everything: services that are not configured, migrations, and the worker.
    Up,
    /// Runs the worker alone, against configured services.
    Worker,
    /// Brings the schema up to date, as the owner of the database.
    Migrate,
    /// Puts files, folders or URLs into a knowledge base and waits until they are searchable.
    Ingest(operate::Ingest),
    /// Asks the index: ranked passages with scores and citations.
    Search(search::Search),
    /// Removes attachments with their text, vectors and objects.
    Forget(operate::Forget),
    /// Queues a job, as `select gristmill.enqueue(…)` does.
    Enqueue(operate::Enqueue),
    /// Looks at jobs and deals with them: list, stats, show, explain, dead, retry, cancel.
    Jobs(jobs::Jobs),
    /// Requests and tokens a minute that all workers share, and pauses of providers.
    #[command(subcommand)]
    Limits(limits::Limits),
    /// Tools of agents and their calls: add, list, call, approve, deny, resolve, cancel, log, results.
    #[command(subcommand)]
    Tool(tool::Tool),
    /// Looks at everything the worker needs, and says what to do where something is missing.
    Doctor(doctor::Doctor),
    /// Checks that the stored rows keep every promise, and names those that do not.
    Verify(verify::Verify),
    /// Shows what comes by the clock; runs one now, switches one on or off.
    #[command(subcommand)]
    Schedules(schedules::Schedules),
    /// From documents in a bucket to cited answers, on the embedded services.
    Demo(demo::Demo),
    /// Measures retrieval on sets in BEIR form: dense, full text and hybrid side by side.
    Eval(eval::run::Eval),
    /// Measures extraction on a folder with a `docs_manifest.jsonl`: states, phrases, token F1.
    EvalDocs(eval::docs::EvalDocs),
    /// Measures speed, as ratios within one run.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Runs one scenario of the MCP conformance suites.
    #[command(hide = true)]
    McpConformance(conformance::Conformance),
}

impl Command {
    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        crate::runtime::close_to_neighbours();
        match crate::runtime::block_on(self.dispatch()) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("gristmill: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    async fn dispatch(self) -> anyhow::Result<ExitCode> {
        let mut settings = Config::load(self.config.as_deref())?;
        let draws = matches!(
            self.what,
            What::Demo(_) | What::Ingest(_) | What::Tool(_) | What::Eval(_) | What::EvalDocs(_)
        );
        // A line for each of a bench's jobs would be most of what it measures.
        let benches = matches!(self.what, What::Bench(ref bench) if !matches!(bench, bench::Bench::Embed(_)));
        if (draws || benches) && settings.log.filter == "gristmill=info,rmcp=off,warn" {
            // These draw progress; only what goes wrong should break into it.
            settings.log.filter = "error,rmcp=off".into();
        }
        start_log(&settings)?;
        if let What::Worker = self.what {
            anyhow::ensure!(settings.database.url.is_some(), "set DATABASE_URL, or use `gristmill up`");
            let store = !settings.objects.endpoint.is_empty() || settings.objects.access_key.is_some();
            anyhow::ensure!(store, "set objects.endpoint and its keys, or use `gristmill up`");
        }
        if let What::Migrate = self.what {
            anyhow::ensure!(settings.database.url.is_some(), "set DATABASE_URL to the owner's address");
        }
        let house = match &self.what {
            // One needs the database alone, the other looks for what is missing.
            What::Migrate | What::Doctor(_) | What::McpConformance(_) | What::Bench(bench::Bench::Mcp(_)) => {
                House::bare(settings)
            }
            _ => House::open(settings).await?,
        };
        let ended = match self.what {
            What::Up => operate::up(&house, true).await,
            What::Worker => operate::up(&house, false).await,
            What::Migrate => operate::migrate(&house).await,
            What::Ingest(ingest) => ingest.run(&house).await,
            What::Search(search) => search.run(&house).await,
            What::Forget(forget) => forget.run(&house).await,
            What::Enqueue(enqueue) => enqueue.run(&house).await,
            What::Jobs(jobs) => jobs.run(&house).await,
            What::Limits(limits) => limits.run(&house).await,
            What::Tool(tool) => tool.run(&house).await,
            What::Doctor(doctor) => doctor.run(&house.settings).await,
            What::Verify(verify) => verify.run(&house).await,
            What::Schedules(schedules) => schedules.run(&house).await,
            What::Demo(demo) => demo.run(&house).await,
            What::Eval(eval) => eval.run(&house).await,
            What::EvalDocs(eval) => eval.run(&house).await,
            What::Bench(bench) => bench.run(&house).await,
            What::McpConformance(scenario) => scenario.run(&house.settings).await,
        };
        house.close().await?;
        ended
    }
}

fn start_log(settings: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&settings.log.filter).context("log.filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log.format {
        LogFormat::Pretty => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
