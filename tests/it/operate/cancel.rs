//! An order to stop: what it says, and what becomes of the job and its subject.

use super::*;
use gristmill::queue;

#[sqlx::test(migrator = "gristmill::MIGRATOR")]
async fn a_cancelled_job_ends_tells_its_attachment_and_can_be_tried_again(db: PgPool) -> anyhow::Result<()> {
    let world = World::new(db).await?;
    let id = world.upload("a.txt", b"the miller and the stone").await?;
    let job = jobs::roots_of(&world.admin, id).await?[0];
    let output = world.gristmill(&["jobs", "cancel", &job.to_string()])?;
    assert!(output.status.success(), "{}", complained(&output));
    assert!(said(&output).contains("WAITING"), "{}", said(&output));
    let reasons = jobs::explain(&world.ctx.db, job).await?;
    assert_eq!(reasons[0].code, "cancel_requested");

    world.work(every_kind).await?;
    assert_eq!(world.job(JobId(job)).await?.0, "CANCELLED");
    assert_eq!(world.standing(id).await?.status, "FAILED");
    assert_eq!(world.broken().await?, Vec::<String>::new());
    assert_eq!(queue::cancel(&world.ctx.db, JobId(job)).await?.as_deref(), Some("CANCELLED"));
    assert_eq!(queue::cancel(&world.ctx.db, JobId(Uuid::now_v7())).await?, None);

    assert_eq!(world.retry(job).await?, ("retried".into(), Some(job)));
    assert_eq!(jobs::get(&world.admin, &[job]).await?[0].priority, 0, "it is no longer before all others");
    world.work(every_kind).await?;
    assert_eq!(world.ended(id).await?, ("READY".into(), "-".into(), "INDEXED".into()));
    Ok(())
}
