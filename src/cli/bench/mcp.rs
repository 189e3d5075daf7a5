//! `gristmill bench mcp`: what a call over our session pool costs beside a bare rmcp call to the
//! same kind of server, in one run.
//!
//! Bare and pooled calls take turns, so that a neighbour's load hits both. The server is the same
//! program twice, or one URL, with a session each.

use crate::cli::house::House;
use crate::cli::table::table;
use crate::domain::WorkspaceId;
use crate::guard::Guard;
use crate::mcp::{Call, Clients, Endpoint, Program, Server, SessionKey, resolve};
use anyhow::Context as _;
use rmcp::ServiceExt;
use rmcp::model::{CallToolRequestParams, ClientConfig};
use rmcp::service::{RoleClient, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Map, Value};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

/// Arguments of `bench mcp`.
#[derive(Debug, clap::Args)]
pub struct Mcp {
    /// Calls of each side, one after the other.
    #[arg(long, default_value_t = 2000)]
    calls: usize,
    /// Calls in flight at once, for the second part.
    #[arg(long, default_value_t = 200)]
    flight: usize,
    /// A server on this machine to reach over streamable HTTP, instead of a program.
    #[arg(long)]
    url: Option<Url>,
    /// The tool.
    #[arg(long, default_value = "echo")]
    tool: String,
    /// Its arguments, as JSON.
    #[arg(long, default_value = r#"{"message":"hi"}"#)]
    arguments: String,
    /// The server's program and its arguments [default: server-everything of `make deps-tools`].
    #[arg(last = true)]
    program: Vec<String>,
}

type Bare = RunningService<RoleClient, ClientConfig>;

/// Both sides, ready to call.
struct Sides {
    bare: Bare,
    _child: Option<tokio::process::Child>,
    clients: Clients,
    key: SessionKey,
    server: Server,
    call: Call,
}

impl Mcp {
    pub(super) async fn run(self, house: &House) -> anyhow::Result<ExitCode> {
        let sides = self.sides(house).await?;
        // Both sessions shake hands, and both sides warm up.
        for _ in 0..50 {
            sides.bare().await?;
            sides.pooled().await?;
        }
        let (mut bare, mut pooled) = (Vec::new(), Vec::new());
        for _ in 0..self.calls {
            bare.push(timed(sides.bare()).await?);
            pooled.push(timed(sides.pooled()).await?);
        }
        let mut table = table(["one after the other", "p50", "p99", "mean"]);
        let (b, p) = (Spread::of(bare), Spread::of(pooled));
        table.add_row(b.row("bare rmcp"));
        table.add_row(p.row("our pool"));
        table.add_row(p.beyond(&b).row("overhead"));
        println!("{table}");
        self.crowd(&sides).await?;
        sides.clients.close().await;
        Ok(ExitCode::SUCCESS)
    }

    /// Many calls in flight at once over each side's one session.
    async fn crowd(&self, sides: &Sides) -> anyhow::Result<()> {
        let before = resident()?;
        let mut table =
            table([format!("{} in flight", self.flight).as_str(), "all", "calls/s", "p50", "p99"]);
        for name in ["bare rmcp", "our pool"] {
            let began = Instant::now();
            let calls = (0..self.flight * 5).map(|_| async {
                match name {
                    "bare rmcp" => timed(sides.bare()).await,
                    _ => timed(sides.pooled()).await,
                }
            });
            let times = futures::StreamExt::collect::<Vec<_>>(futures::StreamExt::buffer_unordered(
                futures::stream::iter(calls),
                self.flight,
            ))
            .await;
            let all = began.elapsed().as_secs_f64();
            let spread = Spread::of(times.into_iter().collect::<anyhow::Result<_>>()?);
            let rate = (self.flight * 5) as f64 / all;
            table.add_row([
                name.to_owned(),
                format!("{all:.2} s"),
                format!("{rate:.0}"),
                millis(spread.p50),
                millis(spread.p99),
            ]);
        }
        println!("{table}");
        let grown = resident()?.saturating_sub(before);
        println!("memory: {} MiB before, {} KiB more after", before >> 20, grown >> 10);
        Ok(())
    }

    async fn sides(&self, house: &House) -> anyhow::Result<Sides> {
        let arguments: Map<String, Value> = serde_json::from_str(&self.arguments).context("--arguments")?;
        let guard = Guard::new(&["127.0.0.0/8".parse()?, "::1/128".parse()?]);
        let (server, bare, child) = if let Some(url) = &self.url {
            let transport = StreamableHttpClientTransport::with_client(
                guard.client(Duration::from_secs(10), None)?,
                StreamableHttpClientTransportConfig::with_uri(url.as_str()).max_concurrent_requests(256),
            );
            let endpoint = Endpoint { url: url.clone(), headers: http::HeaderMap::new() };
            let bare = ClientConfig::default().serve(transport).await?;
            (Server::StreamableHttp(endpoint), bare, None)
        } else {
            let program = self.program(house)?;
            let mut child = tokio::process::Command::new(&program.command)
                .args(&program.arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            let pipes = child.stdout.take().zip(child.stdin.take()).context("the child has no pipes")?;
            let bare = ClientConfig::default().serve(pipes).await?;
            (Server::Stdio(program), bare, Some(child))
        };
        let clients = Clients::new(&house.settings.mcp, &guard)?;
        let key =
            SessionKey { workspace: WorkspaceId(Uuid::now_v7()), server: Uuid::now_v7(), credential: None };
        let call = Call {
            tool: self.tool.clone(),
            arguments,
            call_id: Uuid::now_v7(),
            idempotency_key: None,
            idle: Duration::from_mins(1),
            total: Duration::from_mins(10),
        };
        Ok(Sides { bare, _child: child, clients, key, server, call })
    }

    fn program(&self, house: &House) -> anyhow::Result<Program> {
        let path = &house.settings.mcp.path;
        let (command, arguments) = if let Some((command, arguments)) = self.program.split_first() {
            (command.clone(), arguments.to_vec())
        } else {
            let script = house
                .settings
                .embedded
                .deps_dir
                .join("mcp/servers/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
            let script = script.canonicalize().context("`make deps-tools` brings server-everything")?;
            ("node".to_owned(), vec![script.display().to_string()])
        };
        let command = resolve(&command, path).with_context(|| format!("{command} is not in {path}"))?;
        Ok(Program { command, arguments, env: vec![] })
    }
}

impl Sides {
    async fn bare(&self) -> anyhow::Result<()> {
        let params =
            CallToolRequestParams::new(self.call.tool.clone()).with_arguments(self.call.arguments.clone());
        self.bare.call_tool(params).await.map(drop).map_err(Into::into)
    }

    async fn pooled(&self) -> anyhow::Result<()> {
        let (heard, _ears) = mpsc::channel(16);
        let never = CancellationToken::new();
        self.clients
            .call(&self.key, &self.server, &self.call, heard, &never)
            .await
            .map(drop)
            .map_err(Into::into)
    }
}

async fn timed(call: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let began = Instant::now();
    call.await?;
    Ok(began.elapsed().as_secs_f64())
}

/// How long calls took, in seconds.
#[derive(Debug, Clone, Copy)]
struct Spread {
    p50: f64,
    p99: f64,
    mean: f64,
}

impl Spread {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at =
            |share: f64| seconds.get((seconds.len() as f64 * share) as usize).copied().unwrap_or_default();
        let mean = seconds.iter().sum::<f64>() / seconds.len().max(1) as f64;
        Self { p50: at(0.5), p99: at(0.99), mean }
    }

    fn beyond(&self, other: &Self) -> Self {
        Self { p50: self.p50 - other.p50, p99: self.p99 - other.p99, mean: self.mean - other.mean }
    }

    fn row(&self, name: &str) -> [String; 4] {
        [name.to_owned(), millis(self.p50), millis(self.p99), millis(self.mean)]
    }
}

fn millis(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1000.0)
}

/// Memory of this process, in bytes.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}
