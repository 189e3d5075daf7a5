//! What a job shows to a tool's server: no kind of its own, but a step of `tool_call` and `tool_sync`.
//!
//! The credential is read under the tenant's policy, opened, renewed where it ended, and given out
//! as what goes over the wire. What a person must do first parks the job: a credential that is for
//! another origin than the tool has now, that does not open, or that the provider took back.
//!
//! Of all workers one renews a token, by a lease on its row; the others look again until there is a
//! new version. Accepted race: a lease lapses while its holder still waits for the provider (it does
//! not within [`REQUEST`]'s limit, unless the process is stopped); then two renew with one refresh token,
//! and a provider that counts may take both back, which ends in `NEEDS_AUTH`.

use crate::context::Context;
use crate::domain::{Credential, UserId, WorkspaceId};
use crate::job::{JobError, Parked};
use crate::oauth::{OauthError, REQUEST, Which};
use crate::store::tool_credentials::{self, Found, Held, Holder, Subject, Terms};
use chrono::{TimeDelta, Utc};
use secrecy::{ExposeSecret, SecretString};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

/// Longer than a request may take, so that nobody else renews while one is under way.
const LEASE: Duration = Duration::from_secs(REQUEST.as_secs() + 10);
/// Between two looks for what another worker renews.
const LOOK: Duration = Duration::from_millis(200);

/// For whom, to what, and where it leads now.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    pub workspace: WorkspaceId,
    pub user: Option<UserId>,
    pub subject: Subject,
    /// Of the tool's endpoint as it is now; a credential for another one is not used.
    pub origin: &'a str,
    /// The server's address, where it is reached over HTTP.
    pub server: Option<&'a Url>,
    /// The version that the server has just refused (401): it is renewed, or the job parks.
    pub refused: Option<i32>,
}

/// A credential as it goes over the wire: never one that would still have to be exchanged.
#[derive(Debug, Clone)]
pub struct Proof {
    /// With the version, what a session belongs to.
    pub id: Uuid,
    pub version: i32,
    pub credential: Credential,
}

/// What to show to the server; None where nobody has given a credential for it.
pub async fn prove(ctx: &Context, need: &Need<'_>) -> Result<Option<Proof>, JobError> {
    let until = Instant::now() + LEASE * 2;
    while Instant::now() < until {
        let Some(held) = find(ctx, need).await? else { return Ok(None) };
        let credential = open(ctx, &held)?;
        let refused = need.refused == Some(held.version);
        let proof = |credential| Ok(Some(Proof { id: held.id, version: held.version, credential }));
        match &credential {
            Credential::Oauth { access_token, .. } if !held.is_over && !refused => {
                return proof(Credential::Bearer { token: access_token.clone() });
            }
            Credential::Oauth { .. } => {
                if !renew(ctx, &held, &credential).await? {
                    tokio::time::sleep(LOOK).await;
                }
            }
            Credential::ClientCredentials { .. } => {
                let token = of_program(ctx, need, &held, &credential).await?;
                return proof(Credential::Bearer { token });
            }
            _ if refused => return Err(needs_auth("the server refuses the credential".to_owned())),
            _ => return proof(credential),
        }
    }
    Err(JobError::transient(anyhow::anyhow!("the token was not renewed in time")))
}

/// The server refuses what was renewed for it just now: that version serves no more, until somebody
/// saves another. Else the next call would renew it again, and the next.
pub async fn give_up(ctx: &Context, workspace: WorkspaceId, credential: (Uuid, i32)) -> sqlx::Result<()> {
    let mut tx = crate::store::tenant(&ctx.db, workspace).await?;
    tool_credentials::release(&mut tx, credential, Some("the server refuses a fresh token: sign in anew"))
        .await?;
    tx.commit().await
}

async fn find(ctx: &Context, need: &Need<'_>) -> Result<Option<Held>, JobError> {
    let of = Holder { workspace: need.workspace, user: need.user, subject: need.subject };
    let mut tx = crate::store::tenant(&ctx.db, need.workspace).await?;
    let found = tool_credentials::load(&mut tx, &of, need.origin).await?;
    tx.commit().await?;
    match found {
        Found::Nothing => Ok(None),
        Found::OtherOrigin { saved_for } => Err(needs_auth(format!(
            "the credential was saved for {saved_for}, and the tool leads to {} now: save it anew",
            need.origin
        ))),
        Found::Held(held) => match &held.failure {
            Some(failure) => Err(needs_auth(failure.clone())),
            None => Ok(Some(*held)),
        },
    }
}

fn open(ctx: &Context, held: &Held) -> Result<Credential, JobError> {
    let plain = ctx.keys.open_sealed(&held.sealed, &held.bond());
    let plain = plain.map_err(|error| needs_auth(format!("the credential cannot be opened: {error}")))?;
    Credential::from_json(plain.expose_secret()).map_err(|error| needs_auth(error.to_string()))
}

/// Renews the token, unless another worker does; answers whether a newer version may be there.
async fn renew(ctx: &Context, held: &Held, old: &Credential) -> Result<bool, JobError> {
    let mut tx = crate::store::tenant(&ctx.db, held.holder.workspace).await?;
    let claimed = tool_credentials::claim(&mut tx, held, LEASE).await?;
    tx.commit().await?;
    if !claimed {
        return Ok(false);
    }
    let renewed = ctx.oauth.renew(old).await;
    let mut tx = crate::store::tenant(&ctx.db, held.holder.workspace).await?;
    let granted = match renewed {
        Ok(granted) => granted,
        Err(error) => {
            let failure = error.needs_auth().then(|| format!("the login has ended ({error}): sign in anew"));
            tool_credentials::release(&mut tx, (held.id, held.version), failure.as_deref()).await?;
            tx.commit().await?;
            return Err(failure.map_or_else(|| refused(error), needs_auth));
        }
    };
    let expires_at = TimeDelta::from_std(granted.lifetime()).ok().map(|lifetime| Utc::now() + lifetime);
    let terms = Terms { origin: &held.origin, expires_at, replaces: Some(held.version) };
    if let Some(new) = granted.renewed(old) {
        // None: somebody saved another meanwhile, which is the newer word.
        tool_credentials::save(&mut tx, &held.holder, &terms, |bond| {
            let sealed = ctx.keys.seal(new.to_json().as_bytes(), bond);
            sealed.map_err(|error| JobError::fatal("cannot_seal", error))
        })
        .await?;
    }
    tx.commit().await?;
    Ok(true)
}

async fn of_program(
    ctx: &Context,
    need: &Need<'_>,
    held: &Held,
    credential: &Credential,
) -> Result<SecretString, JobError> {
    let Some(server) = need.server else {
        return Err(needs_auth("client credentials are for servers behind a URL".to_owned()));
    };
    let refused_before = need.refused == Some(held.version);
    let which = Which { credential: held.id, version: held.version, refused: refused_before };
    ctx.oauth.token(which, server, credential).await.map_err(refused)
}

fn refused(error: OauthError) -> JobError {
    if error.is_transient() { JobError::transient(error) } else { needs_auth(error.to_string()) }
}

fn needs_auth(reason: String) -> JobError {
    JobError::Park { why: Parked::NeedsAuth, reason }
}
