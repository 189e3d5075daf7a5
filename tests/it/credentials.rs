//! Credentials of tools: for one holder, one origin and one version, and nowhere else.

use crate::cli::{complained, gristmill, said};
use crate::world::{World, address, settings};
use gristmill::config::Config;
use gristmill::domain::{Credential, ToolId, UserId, WorkspaceId, origin_of};
use gristmill::seal::{Keys, SealError};
use gristmill::store::tool_credentials::{self as credentials, Found, Held, Holder, Subject, Terms};
use secrecy::ExposeSecret;
use sqlx::{PgConnection, PgPool};
use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;
use uuid::Uuid;

const HERE: &str = "https://api.example.org";
const SECRET: &str = "canary-4f1e0c55";

/// Settings with these keys, each 32 times its number; the last one seals.
pub fn with_keys(numbers: &[u8]) -> Config {
    let mut settings = settings();
    for number in numbers {
        settings.seal.keys.insert(format!("k{number}"), hex::encode([*number; 32]).into());
        settings.seal.current = format!("k{number}");
    }
    settings
}

pub async fn user(world: &World, name: &str) -> UserId {
    let insert =
        "INSERT INTO gristmill.users (workspace_id, external_id, email) VALUES ($1, $2, $2 || '@example.org')
                  RETURNING id";
    UserId(
        sqlx::query_scalar(insert).bind(world.workspace.0).bind(name).fetch_one(&world.admin).await.unwrap(),
    )
}

pub async fn tool(world: &World, name: &str, endpoint: &str) -> ToolId {
    let insert = r#"INSERT INTO gristmill.tools (workspace_id, name, type, custom_config, endpoint)
                    VALUES ($1, $2, 'custom', '{"McpType": "API"}', $3) RETURNING id"#;
    let id = sqlx::query_scalar(insert).bind(world.workspace.0).bind(name).bind(endpoint);
    ToolId(id.fetch_one(&world.admin).await.unwrap())
}

fn bearer(token: &str) -> Credential {
    Credential::Bearer { token: token.into() }
}

pub async fn save(conn: &mut PgConnection, keys: &Keys, of: &Holder, token: &str) -> anyhow::Result<i32> {
    let terms = Terms { origin: HERE, expires_at: None, replaces: None };
    let seal = |bond: &[u8]| anyhow::Ok(keys.seal(bearer(token).to_json().as_bytes(), bond)?);
    Ok(credentials::save(conn, of, &terms, seal).await?.expect("nothing was to be replaced"))
}

async fn held(conn: &mut PgConnection, of: &Holder) -> Held {
    match credentials::load(conn, of, HERE).await.unwrap() {
        Found::Held(held) => *held,
        other => panic!("{other:?}"),
    }
}

fn token_of(keys: &Keys, held: &Held) -> Result<String, SealError> {
    let json = keys.open_sealed(&held.sealed, &held.bond())?;
    match Credential::from_json(json.expose_secret()).unwrap() {
        Credential::Bearer { token } => Ok(token.expose_secret().to_owned()),
        _ => panic!("another kind"),
    }
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_credential_is_its_holders_and_the_workspaces_where_a_user_has_none(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    let (ada, bob) = (user(&world, "ada").await, user(&world, "bob").await);
    let subject = Subject::Tool(tool(&world, "weather", &format!("{HERE}/v1")).await);
    let keys = &world.ctx.keys;
    let of = |user| Holder { workspace: world.workspace, user, subject };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    assert!(matches!(credentials::load(&mut tx, &of(Some(ada)), HERE).await?, Found::Nothing));
    save(&mut tx, keys, &of(None), "everybody's").await?;
    save(&mut tx, keys, &of(Some(ada)), "ada's").await?;
    assert_eq!(token_of(keys, &held(&mut tx, &of(Some(ada))).await)?, "ada's");
    assert_eq!(token_of(keys, &held(&mut tx, &of(Some(bob))).await)?, "everybody's");
    assert_eq!(save(&mut tx, keys, &of(Some(ada)), "ada's new").await?, 2);
    assert_eq!(token_of(keys, &held(&mut tx, &of(Some(ada))).await)?, "ada's new");
    assert_eq!(credentials::list(&mut tx).await?.len(), 2);
    tx.commit().await?;

    let birch = sqlx::query_scalar("INSERT INTO gristmill.workspaces (name) VALUES ('birch') RETURNING id");
    let birch = WorkspaceId(birch.fetch_one(&world.admin).await?);
    let mut tx = gristmill::store::tenant(&world.ctx.db, birch).await?;
    assert!(matches!(credentials::load(&mut tx, &of(None), HERE).await?, Found::Nothing));
    assert!(credentials::list(&mut tx).await?.is_empty());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn another_origin_is_not_given_the_credential_whoever_has_one_of_their_own(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    let ada = user(&world, "ada").await;
    let subject = Subject::Tool(tool(&world, "weather", HERE).await);
    let of = |user| Holder { workspace: world.workspace, user, subject };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    save(&mut tx, &world.ctx.keys, &of(None), SECRET).await?;
    for other in ["https://evil.test", "http://api.example.org", "https://api.example.org:8443"] {
        let origin = origin_of(&format!("{other}/v1")).unwrap();
        match credentials::load(&mut tx, &of(Some(ada)), &origin).await? {
            Found::OtherOrigin { saved_for } => assert_eq!(saved_for, HERE),
            found => panic!("{other}: {found:?}"),
        }
    }
    // Whoever may write rows cannot make it another origin's either: the seal knows its own.
    sqlx::query("UPDATE gristmill.tool_credentials SET origin = 'https://evil.test'")
        .execute(&mut *tx)
        .await?;
    match credentials::load(&mut tx, &of(None), "https://evil.test").await? {
        Found::Held(held) => assert!(token_of(&world.ctx.keys, &held).is_err()),
        found => panic!("{found:?}"),
    }
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_swapped_row_and_an_older_version_do_not_open(db: PgPool) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    let (ada, bob) = (user(&world, "ada").await, user(&world, "bob").await);
    let keys = &world.ctx.keys;
    let subject = Subject::Tool(tool(&world, "weather", HERE).await);
    let of = |user| Holder { workspace: world.workspace, user: Some(user), subject };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    save(&mut tx, keys, &of(ada), "ada's").await?;
    save(&mut tx, keys, &of(bob), SECRET).await?;
    let old = held(&mut tx, &of(bob)).await;
    let swap =
        "UPDATE gristmill.tool_credentials a SET credential = b.credential, iv = b.iv, auth_tag = b.auth_tag
                FROM gristmill.tool_credentials b WHERE a.user_id = $1 AND b.user_id = $2";
    sqlx::query(swap).bind(ada.0).bind(bob.0).execute(&mut *tx).await?;
    let wrong = token_of(keys, &held(&mut tx, &of(ada)).await).unwrap_err().to_string();
    assert!(wrong.contains("does not open") && !wrong.contains(SECRET), "{wrong}");
    assert_eq!(token_of(keys, &held(&mut tx, &of(bob)).await)?, SECRET);
    save(&mut tx, keys, &of(bob), "bob's new").await?;
    let back =
        "UPDATE gristmill.tool_credentials SET credential = $1, iv = $2, auth_tag = $3 WHERE user_id = $4";
    let back = sqlx::query(back).bind(old.sealed.ciphertext).bind(old.sealed.iv).bind(old.sealed.auth_tag);
    back.bind(bob.0).execute(&mut *tx).await?;
    assert!(token_of(keys, &held(&mut tx, &of(bob)).await).is_err());
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn one_renews_at_a_time_and_a_renewal_does_not_undo_what_was_saved_meanwhile(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    let subject = Subject::Tool(tool(&world, "weather", HERE).await);
    let of = Holder { workspace: world.workspace, user: None, subject };
    let keys = &world.ctx.keys;
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    save(&mut tx, keys, &of, "first").await?;
    tx.commit().await?;
    let mut claims = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let ctx = std::sync::Arc::clone(&world.ctx);
        claims.spawn(async move {
            let mut tx = gristmill::store::tenant(&ctx.db, of.workspace).await.unwrap();
            let held = held(&mut tx, &of).await;
            let won = credentials::claim(&mut tx, &held, Duration::from_secs(30)).await.unwrap();
            tx.commit().await.unwrap();
            won
        });
    }
    assert_eq!(claims.join_all().await.into_iter().filter(|won| *won).count(), 1);

    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let mine = held(&mut tx, &of).await;
    save(&mut tx, keys, &of, "the user's").await?;
    let terms = Terms { origin: HERE, expires_at: None, replaces: Some(mine.version) };
    let seal = |bond: &[u8]| anyhow::Ok(keys.seal(bearer("renewed").to_json().as_bytes(), bond)?);
    assert_eq!(credentials::save(&mut tx, &of, &terms, seal).await?, None);
    credentials::release(&mut tx, (mine.id, mine.version), Some("refused")).await?;
    let now = held(&mut tx, &of).await;
    assert_eq!((token_of(keys, &now)?.as_str(), now.failure.clone()), ("the user's", None));
    // A lease that lapsed is anybody's.
    assert!(credentials::claim(&mut tx, &now, Duration::from_secs(0)).await?);
    tx.commit().await?;
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    assert!(credentials::claim(&mut tx, &now, Duration::from_secs(30)).await?);
    assert!(!credentials::claim(&mut tx, &now, Duration::from_secs(30)).await?);
    Ok(())
}

/// A call in `state` whose job is parked; answers the job.
pub async fn parked_call(
    world: &World,
    tool: Uuid,
    user: Option<UserId>,
    state: &str,
) -> anyhow::Result<Uuid> {
    let (call, message) = (Uuid::now_v7(), Uuid::now_v7());
    let conversation: Uuid =
        sqlx::query_scalar("INSERT INTO gristmill.conversations (workspace_id) VALUES ($1) RETURNING id")
            .bind(world.workspace.0)
            .fetch_one(&world.admin)
            .await?;
    sqlx::query(
        "INSERT INTO gristmill.messages (id, workspace_id, conversation_id, serial_number, role, sender_type)
         VALUES ($1, $2, $3, 1, 'assistant', 'AI')",
    )
    .bind(message)
    .bind(world.workspace.0)
    .bind(conversation)
    .execute(&world.admin)
    .await?;
    sqlx::query(
        "INSERT INTO gristmill.tool_calls (id, workspace_id, conversation_id, message_id, tool_call_id, tool_id,
             tool_name, user_id, arguments, arguments_sha256)
         VALUES ($1, $2, $3, $4, 'c', $5, 't', $6, '{}', sha256('{}'))",
    )
    .bind(call)
    .bind(world.workspace.0)
    .bind(conversation)
    .bind(message)
    .bind(tool)
    .bind(user.map(|user| user.0))
    .execute(&world.admin)
    .await?;
    sqlx::query("UPDATE gristmill.tool_calls SET state = $2::text::gristmill.tool_call_state, reason = 'why' WHERE id = $1")
        .bind(call)
        .bind(state)
        .execute(&world.admin)
        .await?;
    sqlx::query("SELECT gristmill.publish_kind('tool_call', 0, 'true', 0)").execute(&world.admin).await?;
    let enqueue = "SELECT job_id FROM gristmill.enqueue('tool_call', jsonb_build_object('call', $1::text),
                       key => $1::text, workspace => $2)";
    let job: Uuid = sqlx::query_scalar(enqueue)
        .bind(call.to_string())
        .bind(world.workspace.0)
        .fetch_one(&world.admin)
        .await?;
    sqlx::query("UPDATE gristmill.jobs SET state = 'PARKED', reason = $2 WHERE id = $1")
        .bind(job)
        .bind(state)
        .execute(&world.admin)
        .await?;
    Ok(job)
}

pub async fn state_of(world: &World, job: Uuid) -> String {
    let state = "SELECT state::text FROM gristmill.jobs WHERE id = $1";
    sqlx::query_scalar(state).bind(job).fetch_one(&world.admin).await.unwrap()
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_saved_credential_wakes_the_calls_that_wait_for_it_and_no_others(db: PgPool) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    let (ada, bob) = (user(&world, "ada").await, user(&world, "bob").await);
    let (weather, other) = (tool(&world, "weather", HERE).await, tool(&world, "other", HERE).await);
    let adas = parked_call(&world, weather.0, Some(ada), "NEEDS_AUTH").await?;
    let approval = parked_call(&world, weather.0, Some(ada), "NEEDS_APPROVAL").await?;
    let elsewhere = parked_call(&world, other.0, Some(ada), "NEEDS_AUTH").await?;
    let bobs = parked_call(&world, weather.0, Some(bob), "NEEDS_AUTH").await?;
    let of = |user| Holder { workspace: world.workspace, user, subject: Subject::Tool(weather) };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    save(&mut tx, &world.ctx.keys, &of(Some(ada)), SECRET).await?;
    // Nobody is woken by what may still be rolled back.
    assert_eq!(state_of(&world, adas).await, "PARKED");
    tx.commit().await?;
    let states = async || {
        let mut all = Vec::new();
        for job in [adas, approval, elsewhere, bobs] {
            all.push(state_of(&world, job).await);
        }
        all.join(" ")
    };
    assert_eq!(states().await, "WAITING PARKED PARKED PARKED");
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    save(&mut tx, &world.ctx.keys, &of(None), SECRET).await?;
    tx.commit().await?;
    assert_eq!(states().await, "WAITING PARKED PARKED WAITING");
    // What the worker renews by itself is nobody's word.
    sqlx::query("UPDATE gristmill.jobs SET state = 'PARKED', reason = 'why'").execute(&world.admin).await?;
    for (replaces, expected) in
        [(Some(1), "PARKED PARKED PARKED PARKED"), (None, "WAITING PARKED PARKED PARKED")]
    {
        let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
        let terms = Terms { origin: HERE, expires_at: None, replaces };
        let seal = |bond: &[u8]| anyhow::Ok(world.ctx.keys.seal(bearer("new").to_json().as_bytes(), bond)?);
        credentials::save(&mut tx, &of(Some(ada)), &terms, seal).await?;
        tx.commit().await?;
        assert_eq!(states().await, expected);
    }
    Ok(())
}

fn tell(world: &World, keys: &[u8], arguments: &[&str], input: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = gristmill(arguments, folder.path());
    command.env("DATABASE_URL", address(&world.admin)).stdin(Stdio::piped());
    command
        .env("GRISTMILL__OBJECTS__ENDPOINT", "http://127.0.0.1:1")
        .env("GRISTMILL__OBJECTS__ACCESS_KEY", "k");
    command.env("GRISTMILL__OBJECTS__SECRET_KEY", "s").env("GRISTMILL__EMBED__MODEL", "");
    for number in keys {
        command.env(format!("GRISTMILL__SEAL__KEYS__K{number}"), hex::encode([*number; 32]));
        command.env("GRISTMILL__SEAL__CURRENT", format!("k{number}"));
    }
    let mut child = command.spawn().unwrap();
    // A command that is refused at once may not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_credential_is_set_from_standard_input_listed_without_it_and_sealed_anew(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::with(db, with_keys(&[7])).await?;
    let weather = tool(&world, "weather", &format!("{HERE}/v1/now")).await;
    user(&world, "ada").await;
    let tool = |keys: &[u8], words: &str, input: &str| {
        let words: Vec<_> = ["tool", "credential"].into_iter().chain(words.split(' ')).collect();
        let words =
            if words.contains(&"reseal") { words } else { [&words[..], &["--workspace", "acme"]].concat() };
        let output = tell(&world, keys, &words, input);
        let all = format!("{}{}", said(&output), complained(&output));
        assert!(!all.contains(SECRET), "{all}");
        (output.status.success(), all)
    };
    let (ok, told) = tool(&[], "set weather", SECRET);
    assert!(!ok && told.contains("GRISTMILL__SEAL__KEYS__"), "{told}");
    let (ok, told) = tool(&[7], "set weather --user ada --type header --name x-key", &format!("{SECRET}\n"));
    assert!(ok && told.contains(HERE), "{told}");
    assert!(!tool(&[7], "set weather", "").0 && !tool(&[7], "set sea", SECRET).0);
    assert!(!tool(&[7], "set weather --type header", SECRET).0, "a header needs its name");
    let rows: String =
        sqlx::query_scalar("SELECT string_agg(c::text, ' ') FROM gristmill.tool_credentials c")
            .fetch_one(&world.admin)
            .await?;
    assert!(!rows.contains(SECRET) && !rows.contains(&hex::encode(SECRET)));
    let (ok, told) = tool(&[7], "list", "");
    assert!(ok && told.contains("ada") && told.contains("k7"), "{told}");

    let (ok, told) = tool(&[7, 8], "reseal", "");
    assert!(ok && told.contains("1 sealed anew with k8, 0 left"), "{told}");
    assert!(tool(&[7, 8], "reseal", "").1.contains("0 sealed anew"));
    let keys = Keys::open(&with_keys(&[8]).seal)?;
    let ada = sqlx::query_scalar("SELECT id FROM gristmill.users").fetch_one(&world.admin).await?;
    let of = Holder { workspace: world.workspace, user: Some(UserId(ada)), subject: Subject::Tool(weather) };
    let mut tx = gristmill::store::tenant(&world.ctx.db, world.workspace).await?;
    let row = held(&mut tx, &of).await;
    let json = keys.open_sealed(&row.sealed, &row.bond())?;
    let opened = Credential::from_json(json.expose_secret())?;
    assert!(
        matches!(opened, Credential::Header { name, value } if name == "x-key" && value.expose_secret() == SECRET)
    );
    tx.commit().await?;
    let (ok, told) = tool(&[9], "reseal", "");
    assert!(!ok && told.contains("1 left") && told.contains("k8"), "{told}");
    assert!(tool(&[8], "remove weather --user ada", "").0);
    assert!(!tool(&[8], "remove weather --user ada", "").0);
    Ok(())
}
