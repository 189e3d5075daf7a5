//! `gristmill jobs …` as a person meets it.

use super::*;
use serde_json::Value;

fn json(output: &Output) -> anyhow::Result<Value> {
    anyhow::ensure!(output.status.success(), "{}", complained(output));
    Ok(serde_json::from_str(&said(output))?)
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn the_dead_are_listed_by_cause_and_one_command_makes_their_documents_ready(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = hasty(db).await?;
    let ids = [world.upload("a.txt", b"the miller").await?, world.upload("b.txt", b"the stone").await?];
    world.work(|| without("extract")).await?;

    let groups = json(&world.gristmill(&["jobs", "dead", "--json"])?)?;
    assert_eq!(groups.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&groups[0]["kind"], &groups[0]["code"], &groups[0]["jobs"]),
        (&"extract".into(), &"gave_up".into(), &2.into())
    );
    let table = said(&world.gristmill(&["jobs", "dead"])?);
    assert!(table.contains("what extract needs is away"), "{table}");

    for unmatched in [["--kind", "embed"], ["--since", "0 seconds"]] {
        let none = said(&world.gristmill(&[&["jobs", "retry", "--all-dead"][..], &unmatched].concat())?);
        assert_eq!(none, "no job is dead");
    }
    let retried =
        world.gristmill(&["jobs", "retry", "--all-dead", "--kind", "extract", "--since", "1 hour"])?;
    assert!(retried.status.success(), "{}", complained(&retried));
    assert_eq!(said(&retried).matches("restarted").count(), 2, "{}", said(&retried));
    world.work(every_kind).await?;
    for id in ids {
        assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()));
    }
    assert_eq!(said(&world.gristmill(&["jobs", "dead"])?), "no job is dead");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_job_is_shown_with_its_tree_by_the_beginning_of_its_id_or_by_its_attachment(
    db: PgPool,
) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let attachment = world.ingest("a.txt", b"words").await?;
    let root = jobs::roots_of(&world.admin, attachment).await?[0];
    let tree = jobs::tree(&world.admin, root).await?;

    let whole = said(&world.gristmill(&["jobs", "show", &root.to_string()])?);
    for job in &tree {
        assert!(whole.contains(&format!("{}  {}  DONE", job.id, job.kind)), "{whole}");
    }
    assert!(whole.contains("└─ ") && whole.contains(&format!("{:<12} {attachment}", "key")), "{whole}");
    // The embed job's id begins like no other: its time may be the others', its tail is not.
    let simple = tree[3].id.simple().to_string();
    let short = json(&world.gristmill(&["jobs", "show", &simple[..30], "--json"])?)?;
    assert_eq!(short["job"]["id"], tree[3].id.to_string());
    assert_eq!(short["trees"][0].as_array().map(Vec::len), Some(4));

    let by_attachment = json(&world.gristmill(&["jobs", "show", &attachment.to_string(), "--json"])?)?;
    assert_eq!(by_attachment["trees"], short["trees"]);
    let several = world.gristmill(&["jobs", "show", "0"])?;
    assert!(complained(&several).contains("could be"), "{}", complained(&several));
    let none = world.gristmill(&["jobs", "show", &Uuid::now_v7().to_string()])?;
    assert_eq!(none.status.code(), Some(1));
    let explained = json(&world.gristmill(&["jobs", "explain", &attachment.to_string(), "--json"])?)?;
    assert_eq!(explained[0]["code"], "done");
    Ok(())
}

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn lists_and_counts_are_narrowed_by_what_is_asked(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    world.ingest("a.txt", b"words").await?;
    let waiting = [
        "enqueue",
        "forget",
        r#"{"generation":"01990000-0000-7000-8000-000000000001"}"#,
        "--workspace",
        "other",
    ];
    world.gristmill(&waiting)?;
    let list = |arguments: &[&str]| -> anyhow::Result<usize> {
        let rows = json(&world.gristmill(&[&["jobs", "list", "--json"][..], arguments].concat())?)?;
        Ok(rows.as_array().map_or(0, Vec::len))
    };
    assert_eq!(list(&[])?, 5);
    assert_eq!(list(&["--limit", "2"])?, 2);
    assert_eq!(list(&["--state", "done"])?, 4);
    assert_eq!(list(&["--kind", "scan"])?, 1);
    assert_eq!(list(&["--workspace", "other"])?, 1);
    assert_eq!(list(&["--workspace", &world.workspace.to_string()])?, 4);
    assert_eq!(world.gristmill(&["jobs", "--workspace", "nobody"])?.status.code(), Some(1));

    let head = said(&world.gristmill(&["jobs"])?);
    assert!(
        head.lines().next().is_some_and(|line| line.contains("1 WAITING") && line.contains("4 DONE")),
        "{head}"
    );
    let counts = json(&world.gristmill(&["jobs", "stats", "--json"])?)?;
    let of =
        |kind: &str| counts.as_array().into_iter().flatten().find(|count| count["kind"] == kind).cloned();
    assert_eq!(of("forget").map(|count| count["jobs"].clone()), Some(1.into()));
    assert!(said(&world.gristmill(&["jobs", "stats"])?).contains("bulk"));
    Ok(())
}
