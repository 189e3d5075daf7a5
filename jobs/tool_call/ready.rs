//! What a call is made with: the tool's settings read, its credential opened, its server's session
//! key. All of it before the call is written as started, so that nothing that fails here is a start.

use super::clear::Cleared;
use crate::api;
use crate::context::Context;
use crate::domain::{Credential, origin_of};
use crate::ground::{Place, Provider};
use crate::job::{JobError, Parked, Turn};
use crate::jobs::authenticate::{Need, Proof, prove};
use crate::jobs::connect::{Connected, Wanted, connect};
use crate::sql;
use crate::store::tool_access::Tool;
use crate::store::tool_calls::Call;
use crate::store::tool_credentials::Subject;
use crate::store::{profiles, user_keys};
use anyhow::anyhow;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

/// A credential opened for one origin.
pub struct Shown {
    pub credential: Credential,
    pub origin: String,
}

/// A call's means, by the tool's kind.
pub enum Ready {
    ReadResult,
    KnowledgeBase,
    Mcp(Box<Connected>),
    Api(Box<api::Tool>, Option<Shown>),
    Database(Option<Shown>),
    WebSearch(Box<Search>),
}

/// A grounded search's means.
pub struct Search {
    pub provider: Provider,
    pub model: String,
    pub place: Option<Place>,
    pub key: SecretString,
}

/// Makes a call ready; what a person must mend first parks it.
pub async fn prepare(ctx: &Context, turn: &Turn, call: &Call, cleared: &Cleared) -> Result<Ready, JobError> {
    let Some(tool) = &cleared.tool else { return Ok(Ready::ReadResult) };
    match tool.kind.as_str() {
        "knowledgebase" => Ok(Ready::KnowledgeBase),
        "MCP" => {
            let connection =
                tool.connection.ok_or_else(|| wrong("the tool has no connection to a server"))?;
            let wanted = Wanted { workspace: turn.workspace(), connection, user: call.user, refused: None };
            Ok(Ready::Mcp(Box::new(connect(ctx, &wanted).await?)))
        }
        "API" => {
            let read = read_api(tool).await?;
            let shown = show(ctx, turn, (call, tool), read.origin()).await?;
            Ok(Ready::Api(Box::new(read), shown))
        }
        "database" => database(ctx, turn, call, tool).await,
        "web_search" => web_search(ctx, turn, call, tool).await,
        other => Err(wrong(&format!("this version makes no calls of tools of kind {other}"))),
    }
}

/// A document may be large: it is read where nobody else waits.
async fn read_api(tool: &Tool) -> Result<api::Tool, JobError> {
    let (config, endpoint) = (tool.custom_config.clone(), tool.endpoint.clone());
    let schema = tool.input_schema.clone();
    let read =
        tokio::task::spawn_blocking(move || api::Tool::read(&config, endpoint.as_deref(), &schema)).await;
    read.map_err(|_| wrong("reading the tool broke down"))?
        .map_err(|fault| JobError::refused("bad_tool", fault))
}

fn wrong(why: &str) -> JobError {
    JobError::refused("bad_tool", anyhow!("{why}"))
}

fn needs_auth(reason: String) -> JobError {
    JobError::Park { why: Parked::NeedsAuth, reason }
}

/// The tool's credential, where it asks for one.
async fn show(
    ctx: &Context,
    turn: &Turn,
    (call, tool): (&Call, &Tool),
    origin: String,
) -> Result<Option<Shown>, JobError> {
    if tool.authentication == "none" {
        return Ok(None);
    }
    let server = Url::parse(tool.endpoint.as_deref().unwrap_or(&origin)).ok();
    let need = Need {
        workspace: turn.workspace(),
        user: call.user,
        subject: Subject::Tool(tool.id),
        origin: &origin,
        server: server.as_ref(),
        refused: None,
    };
    match prove(ctx, &need).await? {
        Some(Proof { credential, .. }) => Ok(Some(Shown { credential, origin })),
        None => {
            Err(needs_auth(format!("{} needs one ({}), and none is stored", tool.name, tool.authentication)))
        }
    }
}

async fn database(ctx: &Context, turn: &Turn, call: &Call, tool: &Tool) -> Result<Ready, JobError> {
    let endpoint = tool.endpoint.as_deref().ok_or_else(|| wrong("the tool has no endpoint"))?;
    let own = sql::origin(endpoint).map_err(|fault| JobError::refused("bad_tool", fault))?;
    Ok(Ready::Database(show(ctx, turn, (call, tool), own).await?))
}

/// `custom_config` of a `web_search` tool.
#[derive(Debug, Deserialize)]
struct Grounding {
    provider: Provider,
    model: String,
}

async fn web_search(ctx: &Context, turn: &Turn, call: &Call, tool: &Tool) -> Result<Ready, JobError> {
    let Grounding { provider, model } = Grounding::deserialize(&tool.custom_config)
        .map_err(|fault| wrong(&format!("its settings name no provider and model: {fault}")))?;
    let settings = &ctx.settings.web_search;
    let (address, word) = match provider {
        Provider::Gemini => (&settings.gemini_url, "GEMINI"),
        Provider::OpenAi => (&settings.openai_url, "OPENAI"),
        Provider::Anthropic => (&settings.anthropic_url, "ANTHROPIC"),
        Provider::Grok => (&settings.grok_url, "GROK"),
    };
    let origin = origin_of(address).ok_or_else(|| wrong("the settings name no address for the provider"))?;
    let key = match show(ctx, turn, (call, tool), origin).await? {
        Some(Shown {
            credential: Credential::Bearer { token: key } | Credential::Header { value: key, .. },
            ..
        }) => key,
        Some(_) => return Err(needs_auth("a provider's key is a bearer token: save it anew".into())),
        None => users_key(ctx, turn, call, word).await?,
    };
    let mut tx = crate::store::tenant(&ctx.db, turn.workspace()).await?;
    let profile = match call.user {
        Some(user) => profiles::of_user(&mut tx, user).await?,
        None => None,
    };
    tx.commit().await?;
    let place = profile.map(|profile| Place {
        latitude_longitude: profile.lat.zip(profile.lng),
        city: profile.city,
        region: profile.region,
        country: profile.country,
        timezone: profile.timezone,
    });
    Ok(Ready::WebSearch(Box::new(Search { provider, model, place, key })))
}

/// The key that the user brought for the provider.
async fn users_key(
    ctx: &Context,
    turn: &Turn,
    call: &Call,
    provider: &str,
) -> Result<SecretString, JobError> {
    let missing = || needs_auth(format!("the user has no key of {provider}"));
    let user = call.user.ok_or_else(missing)?;
    let mut tx = crate::store::tenant(&ctx.db, turn.workspace()).await?;
    let sealed = user_keys::of_user(&mut tx, (user, call.conversation), provider).await?;
    tx.commit().await?;
    let plain = ctx.keys.open_sealed(&sealed.ok_or_else(missing)?, b"");
    let plain = plain.map_err(|error| needs_auth(format!("the user's key cannot be opened: {error}")))?;
    let key = std::str::from_utf8(plain.expose_secret());
    Ok(SecretString::from(key.map_err(|_| needs_auth("the user's key is no text".into()))?))
}
