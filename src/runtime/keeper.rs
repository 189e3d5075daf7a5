//! Keeps the leases: renews what is in hand, takes back what others let lapse.
//!
//! It has its own thread, event loop and connection, so neither CPU work in the jobs nor an
//! exhausted pool delays it. While the database cannot be reached it tells nobody to stop:
//! the fence decides later, by epoch.

use crate::queue::desk::{self, Backoff};
use crate::runtime::hands::Hands;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the keeper needs to know.
#[derive(Debug, Clone)]
pub struct Duty {
    pub database: PgConnectOptions,
    pub role: String,
    pub lease: Duration,
    pub backoff: Backoff,
}

/// The keeper's thread; it ends when `end` fires.
pub fn start(
    duty: Duty,
    hands: Arc<Hands>,
    end: CancellationToken,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("lease-keeper".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "the lease keeper could not start"),
        };
        runtime.block_on(async {
            tokio::select! {
                () = end.cancelled() => {}
                () = keep(&duty, &hands) => {}
            }
        });
    })
}

async fn keep(duty: &Duty, hands: &Hands) {
    let mut connection = None;
    loop {
        if let Err(error) = round(duty, hands, &mut connection).await {
            tracing::warn!(%error, "renewing leases failed; connecting anew");
            connection = None;
        }
        tokio::time::sleep(duty.lease / 3).await;
    }
}

async fn round(duty: &Duty, hands: &Hands, kept: &mut Option<PgConnection>) -> sqlx::Result<()> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(connect(duty).await?),
    };
    let held = hands.leases();
    if !held.is_empty() {
        let ours = desk::renew(connection, &held, duty.lease).await?;
        for lease in held {
            match ours.iter().find(|kept| kept.job == lease.job) {
                Some(kept) if !kept.cancel_requested => {}
                // Lost or cancelled; a job that has just ended is no longer in hand.
                _ => hands.stop(lease),
            }
        }
    }
    let rescued = desk::rescue(connection, duty.backoff).await?;
    if rescued > 0 {
        tracing::warn!(jobs = rescued, "took back jobs whose lease had lapsed");
    }
    Ok(())
}

async fn connect(duty: &Duty) -> sqlx::Result<PgConnection> {
    let mut connection = duty.database.connect().await?;
    crate::store::take_role(&mut connection, &duty.role).await?;
    Ok(connection)
}
