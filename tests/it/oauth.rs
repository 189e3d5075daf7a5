//! Logins, renewals and tokens of programs, against an authorization server of our own.

pub mod server;

use crate::credentials::{user, with_keys};
use crate::tool_call::Chat;
use crate::world::World;
use gristmill::domain::{Credential, UserId, origin_of};
use gristmill::guard::Guard;
use gristmill::job::{JobError, Parked};
use gristmill::jobs::authenticate::{Need, prove};
use gristmill::oauth::{Client, Login, Oauth, OauthError, Pending, Wish};
use gristmill::runtime::every_kind;
use gristmill::store::tool_credentials::{self as credentials, Found, Holder, Subject, Terms};
use secrecy::ExposeSecret;
use server::{Provider, Rules};
use sqlx::PgPool;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use url::Url;

const BACK: &str = "http://127.0.0.1:9/back";

fn oauth() -> Oauth {
    Oauth::new(&Guard::new(&["127.0.0.1/32".parse().unwrap()])).unwrap()
}

async fn begin(oauth: &Oauth, provider: &Provider, client: Client) -> Result<Login, OauthError> {
    let (server, redirect) = (provider.url("/mcp"), Url::parse(BACK).unwrap());
    oauth.begin(&Wish { server: &server, redirect: &redirect, client, scopes: vec![], challenge: None }).await
}

fn query(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

#[tokio::test]
async fn a_login_goes_by_discovery_registration_and_pkce_and_another_process_can_end_it() {
    let provider = Provider::start(Rules::default()).await;
    let login = begin(&oauth(), &provider, Client::Register).await.unwrap();
    assert_eq!(query(&login.url, "code_challenge_method").as_deref(), Some("S256"));
    assert_eq!(query(&login.url, "resource"), Some(provider.url("/mcp").to_string()));
    assert_eq!(query(&login.url, "scope").as_deref(), Some("tools:read"));
    let back = provider.consent(&login.url);
    let pending = Pending::from_json(login.pending.to_json().as_bytes()).unwrap();
    assert!(!format!("{pending:?}").contains(login.pending.state()));
    let (credential, granted) = oauth().finish(&pending, &back).await.unwrap();
    assert_eq!(granted.lifetime(), Duration::from_hours(1));
    let Credential::Oauth { access_token, refresh_token, token_url, resource, .. } = &credential else {
        panic!("another kind")
    };
    assert!(provider.accepts(access_token.expose_secret()));
    assert!(refresh_token.is_some());
    assert_eq!(token_url, provider.url("/token").as_str());
    assert_eq!(resource.as_deref(), Some(provider.url("/mcp").as_str()));
    // A code is used once, and the provider's word is told without the code.
    let again = oauth().finish(&pending, &back).await.unwrap_err();
    assert!(matches!(&again, OauthError::Refused { code } if code == "invalid_grant"), "{again}");
}

#[tokio::test]
async fn an_answer_to_another_login_or_from_another_server_is_refused_before_any_request() {
    let provider = Provider::start(Rules { names_issuer: true, ..Rules::default() }).await;
    let login = begin(&oauth(), &provider, Client::Register).await.unwrap();
    let back = provider.consent(&login.url);
    let asked = provider.token_requests.load(Ordering::SeqCst);
    let with = |name: &str, value: Option<&str>| {
        let mut url = back.clone();
        let kept: Vec<_> = back
            .query_pairs()
            .filter(|(key, _)| key != name)
            .map(|(k, v)| (k.into_owned(), v.into_owned()))
            .collect();
        url.query_pairs_mut().clear().extend_pairs(kept);
        value.map(|value| url.query_pairs_mut().append_pair(name, value).finish().clone());
        url
    };
    let wrong = [
        with("state", Some("another")),
        with("state", None),
        with("iss", Some("https://evil.test")),
        with("iss", None),
        with("code", None),
    ];
    for url in wrong {
        let error = oauth().finish(&login.pending, &url).await.unwrap_err();
        assert!(matches!(error, OauthError::Callback(_)), "{url}: {error}");
    }
    let denied = with("error", Some("access_denied"));
    let error = oauth().finish(&login.pending, &denied).await.unwrap_err();
    assert!(matches!(&error, OauthError::Refused { code } if code == "access_denied"), "{error}");
    assert_eq!(provider.token_requests.load(Ordering::SeqCst), asked);
    oauth().finish(&login.pending, &back).await.unwrap();
}

#[tokio::test]
async fn metadata_that_leads_to_private_addresses_gets_no_connection() {
    let decoy = crate::fetch::server("127.0.0.2", vec![("/", crate::fetch::ok("", b"{}"))]).await;
    let place = format!("http://127.0.0.2:{}", decoy.port);
    for rules in [
        Rules { authorization_server: Some(place.clone()), ..Rules::default() },
        Rules { token_endpoint: Some(format!("{place}/token")), ..Rules::default() },
        Rules { registration_endpoint: Some(format!("{place}/register")), ..Rules::default() },
    ] {
        let provider = Provider::start(rules).await;
        let outcome = match begin(&oauth(), &provider, Client::Register).await {
            Ok(login) => oauth().finish(&login.pending, &provider.consent(&login.url)).await.map(drop),
            Err(error) => Err(error),
        };
        let error = outcome.unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    // The guard itself: the server of the tool.
    let closed = Oauth::new(&Guard::new(&[])).unwrap();
    let provider = Provider::start(Rules::default()).await;
    let error = begin(&closed, &provider, Client::Register).await.unwrap_err();
    assert!(matches!(error, OauthError::Address(_)), "{error}");
    assert_eq!(provider.requests.load(Ordering::SeqCst), 0);
    assert_eq!(decoy.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_secret_goes_in_a_header_or_in_the_body_as_the_server_takes_it() {
    for (methods, posts) in
        [(vec!["client_secret_post"], true), (vec!["client_secret_basic"], false), (vec![], true)]
    {
        let provider = Provider::start(Rules { methods, takes_only_post: posts, ..Rules::default() }).await;
        let client = Client::Known { id: "known".into(), secret: Some("s3cret&=%".into()) };
        let login = begin(&oauth(), &provider, client).await.unwrap();
        let (credential, _) = oauth().finish(&login.pending, &provider.consent(&login.url)).await.unwrap();
        oauth().renew(&credential).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_bad_day_is_and_what_is_a_final_word() {
    let provider = Provider::start(Rules::default()).await;
    let login = begin(&oauth(), &provider, Client::Register).await.unwrap();
    let (credential, _) = oauth().finish(&login.pending, &provider.consent(&login.url)).await.unwrap();
    for (answer, transient, ends) in [
        ((500, r#"{"error": "server_error"}"#), true, false),
        ((503, "busy"), true, false),
        ((429, "{}"), true, false),
        ((400, r#"{"error": "invalid_grant", "error_description": "canary-77"}"#), false, true),
        ((200, r#"{"error": "invalid_grant"}"#), false, true),
        ((200, r#"{"access_token": "a\nb", "token_type": "Bearer"}"#), false, false),
        ((200, r#"{"access_token": "x", "token_type": "mac"}"#), false, false),
        ((302, ""), false, false),
    ] {
        provider.answer_once(answer.0, answer.1);
        let error = oauth().renew(&credential).await.unwrap_err();
        assert_eq!((error.is_transient(), error.needs_auth()), (transient, ends), "{answer:?}: {error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    }
    // Nothing was used up by it.
    oauth().renew(&credential).await.unwrap();
}

/// A world, a connection to the provider's server, and a user's login that ended a minute ago.
async fn world_with_ended_login(db: PgPool, provider: &Provider) -> (World, UserId, Subject) {
    let mut settings = with_keys(&[7]);
    settings.fetch.allow = vec!["127.0.0.0/8".parse().unwrap()];
    let world = World::with(db, settings).await.unwrap();
    let ada = user(&world, "ada").await;
    let subject =
        Subject::Tool(crate::credentials::tool(&world, "remote", provider.url("/mcp").as_str()).await);
    sign_in(&world, provider, ada, subject).await;
    (world, ada, subject)
}

async fn sign_in(world: &World, provider: &Provider, user: UserId, subject: Subject) {
    let login = begin(&world.ctx.oauth, provider, Client::Register).await.unwrap();
    let back = provider.consent(&login.url);
    let (credential, _) = world.ctx.oauth.finish(&login.pending, &back).await.unwrap();
    let origin = origin_of(provider.url("/mcp").as_str()).unwrap();
    let ended = chrono::Utc::now() - chrono::TimeDelta::minutes(1);
    let terms = Terms { origin: &origin, expires_at: Some(ended), replaces: None };
    let of = Holder { workspace: world.workspace, user: Some(user), subject };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await.unwrap();
    let seal = |bond: &[u8]| anyhow::Ok(world.ctx.keys.seal(credential.to_json().as_bytes(), bond)?);
    credentials::save(&mut tx, &of, &terms, seal).await.unwrap();
    tx.commit().await.unwrap();
}

fn token(proof: Option<gristmill::jobs::authenticate::Proof>) -> String {
    match proof.expect("there is one").credential {
        Credential::Bearer { token } => token.expose_secret().to_owned(),
        _ => panic!("another kind"),
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn of_many_workers_one_renews_a_token_and_all_have_it(db: PgPool) -> anyhow::Result<()> {
    let provider =
        Provider::start(Rules { rotates: true, slow: Duration::from_millis(300), ..Rules::default() }).await;
    let (mut world, ada, subject) = world_with_ended_login(db, &provider).await;
    let (origin, url) = (origin_of(provider.url("/mcp").as_str()).unwrap(), provider.url("/mcp"));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..24 {
        if n % 8 == 0 {
            // As if it were another worker.
            world.restart(|_| {})?;
        }
        let (ctx, origin, url, workspace) =
            (Arc::clone(&world.ctx), origin.clone(), url.clone(), world.workspace);
        tasks.spawn(async move {
            let need = Need {
                workspace,
                user: Some(ada),
                subject,
                origin: &origin,
                server: Some(&url),
                refused: None,
            };
            token(prove(&ctx, &need).await.unwrap())
        });
    }
    let tokens: std::collections::HashSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(tokens.len(), 1);
    assert!(provider.accepts(tokens.iter().next().unwrap()));
    assert_eq!(provider.renewals.load(Ordering::SeqCst), 1, "a rotated token used twice ends the login");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_refused_token_is_renewed_once_and_a_login_that_ended_parks_without_asking_again(
    db: PgPool,
) -> anyhow::Result<()> {
    let provider = Provider::start(Rules::default()).await;
    let (world, ada, subject) = world_with_ended_login(db, &provider).await;
    let (origin, url) = (origin_of(provider.url("/mcp").as_str()).unwrap(), provider.url("/mcp"));
    let need = Need {
        workspace: world.workspace,
        user: Some(ada),
        subject,
        origin: &origin,
        server: Some(&url),
        refused: None,
    };
    let first = prove(&world.ctx, &need).await?.unwrap();
    let same = prove(&world.ctx, &need).await?.unwrap();
    assert_eq!((same.version, provider.renewals.load(Ordering::SeqCst)), (first.version, 1));
    let renewed = prove(&world.ctx, &Need { refused: Some(first.version), ..need }).await?.unwrap();
    assert!(renewed.version > first.version);
    // Whoever was refused with an older version finds the newer one.
    let other = prove(&world.ctx, &Need { refused: Some(first.version), ..need }).await?.unwrap();
    assert_eq!((other.version, provider.renewals.load(Ordering::SeqCst)), (renewed.version, 2));

    provider.end_all_logins();
    let refused = Need { refused: Some(renewed.version), ..need };
    for _ in 0..3 {
        match prove(&world.ctx, &refused).await {
            Err(JobError::Park { why: Parked::NeedsAuth, reason }) => {
                assert!(reason.contains("sign in anew"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(provider.renewals.load(Ordering::SeqCst), 3, "a final word is not asked for again");
    sign_in(&world, &provider, ada, subject).await;
    assert!(provider.accepts(&token(prove(&world.ctx, &need).await?)));
    Ok(())
}

/// A connection to the provider's server, which refuses every token, and a tool of it.
async fn connected(chat: &Chat<'_>, provider: &Provider, status: &str) -> anyhow::Result<Subject> {
    let connection: uuid::Uuid = sqlx::query_scalar(
        "WITH server AS (INSERT INTO gristmill.mcp_servers (name, transport, url)
                         VALUES ('remote', 'streamable_http', $2) RETURNING id)
         INSERT INTO gristmill.mcp_server_connections (workspace_id, server_id, status)
         SELECT $1, id, $3::text::gristmill.connection_status FROM server RETURNING id",
    )
    .bind(chat.workspace.0)
    .bind(provider.url("/mcp").as_str())
    .bind(status)
    .fetch_one(&chat.world.admin)
    .await?;
    let tool: uuid::Uuid = sqlx::query_scalar(
        "WITH tool AS (INSERT INTO gristmill.tools (workspace_id, connection_id, name, remote_name, type)
                       VALUES ($1, $2, 'remote__pay', 'pay', 'MCP') RETURNING id),
         policy AS (INSERT INTO gristmill.tool_policies (workspace_id, tool_id, decision)
                    SELECT $1, id, 'allow' FROM tool)
         INSERT INTO gristmill.tool_definitions (workspace_id, tool_id, sha256, definition, review, reviewed_at)
         SELECT $1, id, sha256('pay'), '{\"name\": \"pay\"}', 'APPROVED', now() FROM tool RETURNING tool_id",
    )
    .bind(chat.workspace.0)
    .bind(connection)
    .fetch_one(&chat.world.admin)
    .await?;
    chat.give(tool).await?;
    Ok(Subject::Connection(connection))
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_server_that_refuses_a_fresh_token_is_not_asked_again_until_somebody_signs_in(
    db: PgPool,
) -> anyhow::Result<()> {
    let provider = Provider::start(Rules::default()).await;
    let (world, _, _) = world_with_ended_login(db, &provider).await;
    let chat = Chat::new(&world).await?;
    let subject = connected(&chat, &provider, "connected").await?;
    sign_in(&world, &provider, UserId(chat.user), subject).await;
    let first = chat.call("a", "remote__pay", serde_json::json!({})).await?;
    chat.work().await?;
    let (state, reason) = chat.state(first).await?;
    assert_eq!(state, "NEEDS_AUTH", "{reason:?}");
    assert_eq!(provider.renewals.load(Ordering::SeqCst), 2, "it had ended, and it was refused");
    let before = provider.requests.load(Ordering::SeqCst);
    let second = chat.call("b", "remote__pay", serde_json::json!({})).await?;
    chat.work().await?;
    let (state, reason) = chat.state(second).await?;
    assert_eq!(state, "NEEDS_AUTH");
    assert!(reason.as_deref().is_some_and(|why| why.contains("refuses a fresh token")), "{reason:?}");
    assert_eq!(provider.requests.load(Ordering::SeqCst), before);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_look_at_a_server_that_refuses_each_token_renews_it_once(db: PgPool) -> anyhow::Result<()> {
    let provider = Provider::start(Rules::default()).await;
    let (world, _, _) = world_with_ended_login(db, &provider).await;
    let chat = Chat::new(&world).await?;
    let subject = connected(&chat, &provider, "disconnected").await?;
    // The login itself brings the look.
    sign_in(&world, &provider, UserId(chat.user), subject).await;
    world.work(every_kind).await?;
    assert_eq!(provider.renewals.load(Ordering::SeqCst), 2, "it had ended, and it was refused");
    let failed = "SELECT count(*) FROM gristmill.mcp_server_connections WHERE status = 'error' AND failure LIKE '%login%'";
    assert_eq!(world.count(failed).await?, 1);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_changed_endpoint_parks_the_call_and_gets_no_connection(db: PgPool) -> anyhow::Result<()> {
    let provider = Provider::start(Rules::default()).await;
    let (world, ada, subject) = world_with_ended_login(db, &provider).await;
    let other = Provider::start(Rules::default()).await;
    let (origin, url) = (origin_of(other.url("/mcp").as_str()).unwrap(), other.url("/mcp"));
    let before = provider.requests.load(Ordering::SeqCst);
    let need = Need {
        workspace: world.workspace,
        user: Some(ada),
        subject,
        origin: &origin,
        server: Some(&url),
        refused: None,
    };
    match prove(&world.ctx, &need).await {
        Err(JobError::Park { why: Parked::NeedsAuth, reason }) => {
            assert!(
                reason.contains("saved for http://127.0.0.1") && reason.contains("save it anew"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(other.requests.load(Ordering::SeqCst), 0);
    assert_eq!(provider.requests.load(Ordering::SeqCst), before);
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_program_has_one_token_for_all_its_calls_until_it_ends_or_is_refused(
    db: PgPool,
) -> anyhow::Result<()> {
    let provider = Provider::start(Rules::default()).await;
    let (world, _, subject) = world_with_ended_login(db, &provider).await;
    let (origin, url) = (origin_of(provider.url("/mcp").as_str()).unwrap(), provider.url("/mcp"));
    for token_url in [String::new(), provider.url("/token").to_string()] {
        let credential = Credential::ClientCredentials {
            client_id: "known".into(),
            client_secret: "s3cret&=%".into(),
            token_url,
            scope: Some("tools:read".into()),
        };
        let of = Holder { workspace: world.workspace, user: None, subject };
        let terms = Terms { origin: &origin, expires_at: None, replaces: None };
        let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
        let seal = |bond: &[u8]| anyhow::Ok(world.ctx.keys.seal(credential.to_json().as_bytes(), bond)?);
        credentials::save(&mut tx, &of, &terms, seal).await?;
        let Found::Held(_) = credentials::load(&mut tx, &of, &origin).await? else { panic!("it was saved") };
        tx.commit().await?;
        let before = provider.programs.load(Ordering::SeqCst);
        let need = Need {
            workspace: world.workspace,
            user: None,
            subject,
            origin: &origin,
            server: Some(&url),
            refused: None,
        };
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (ctx, origin, url) = (Arc::clone(&world.ctx), origin.clone(), url.clone());
            let workspace = world.workspace;
            tasks.spawn(async move {
                let need = Need {
                    workspace,
                    user: None,
                    subject,
                    origin: &origin,
                    server: Some(&url),
                    refused: None,
                };
                token(prove(&ctx, &need).await.unwrap())
            });
        }
        let tokens: std::collections::HashSet<_> = tasks.join_all().await.into_iter().collect();
        assert_eq!((tokens.len(), provider.programs.load(Ordering::SeqCst) - before), (1, 1));
        let version = prove(&world.ctx, &need).await?.unwrap().version;
        let anew = token(prove(&world.ctx, &Need { refused: Some(version), ..need }).await?);
        assert!(!tokens.contains(&anew) && provider.accepts(&anew));
    }
    Ok(())
}

/// All that the program writes to its log, at the finest.
#[derive(Clone, Default)]
struct Heard(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_of_a_login_stands_in_the_finest_log() {
    let heard = Heard::default();
    let writer = heard.clone();
    let log =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(log.finish());
    let provider = Provider::start(Rules::default()).await;
    let client = Client::Known { id: "known".into(), secret: Some("s3cret&=%".into()) };
    let login = begin(&oauth(), &provider, client).await.unwrap();
    let back = provider.consent(&login.url);
    let (credential, _) = oauth().finish(&login.pending, &back).await.unwrap();
    let granted = oauth().renew(&credential).await.unwrap();
    provider.end_all_logins();
    let wrong = oauth().renew(&credential).await.unwrap_err();
    tracing::error!(?credential, ?granted, %wrong, ?wrong, pending = ?login.pending, "all of it");
    let log = String::from_utf8_lossy(&heard.0.lock().unwrap()).into_owned();
    assert!(log.len() > 1000 && log.contains("all of it"), "{log}");
    let Credential::Oauth { access_token, refresh_token, .. } = &credential else { panic!("another kind") };
    let secrets = [
        access_token.expose_secret().to_owned(),
        refresh_token.as_ref().unwrap().expose_secret().to_owned(),
        granted.access_token.expose_secret().to_owned(),
        "s3cret".to_owned(),
        query(&back, "code").unwrap(),
        login.pending.state().to_owned(),
    ];
    for secret in secrets {
        let at = log.find(&secret);
        assert!(at.is_none(), "{}", &log[at.unwrap().saturating_sub(200)..]);
    }
}
