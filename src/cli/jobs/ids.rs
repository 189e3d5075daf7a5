//! Which job an id on the command line means.

use crate::store::jobs;
use anyhow::Context as _;
use sqlx::PgPool;
use uuid::Uuid;

/// The jobs that an id, or the beginning of one, can mean.
pub async fn find(db: &PgPool, id: &str) -> anyhow::Result<Vec<Uuid>> {
    let (first, last) = bounds(id).with_context(|| format!("{id:?} is no id"))?;
    Ok(jobs::between(db, first, last).await?)
}

/// The one job that is meant: by its id, or the newest that worked on an attachment.
pub async fn one(db: &PgPool, id: &str) -> anyhow::Result<Uuid> {
    match find(db, id).await?.as_slice() {
        [job] => Ok(*job),
        [] => {
            let Ok(attachment) = id.parse() else { anyhow::bail!("there is no job {id}") };
            let root = jobs::roots_of(db, attachment).await?.pop();
            let tree = jobs::tree(db, root.with_context(|| format!("there is no job {id}"))?).await?;
            Ok(tree.last().with_context(|| format!("the jobs of {id} were removed"))?.id)
        }
        several => anyhow::bail!("{id} could be {}", listed(several)),
    }
}

/// Several ids in one line.
pub fn listed(ids: &[Uuid]) -> String {
    ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ")
}

/// The first and the last id that begin so; dashes may be left out.
fn bounds(prefix: &str) -> Option<(Uuid, Uuid)> {
    let digits: String = prefix.chars().filter(|c| *c != '-').collect();
    if digits.is_empty() || digits.len() > 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let filled = |with: &str| Uuid::parse_str(&format!("{digits}{}", with.repeat(32 - digits.len()))).ok();
    Some((filled("0")?, filled("f")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_means_all_that_begin_so() {
        let (first, last) = bounds("0199-aB").unwrap();
        assert_eq!(first.to_string(), "0199ab00-0000-0000-0000-000000000000");
        assert_eq!(last.to_string(), "0199abff-ffff-ffff-ffff-ffffffffffff");
        let whole = "0199abcd-0000-7000-8000-000000000001";
        let whole_id = whole.parse().unwrap();
        assert_eq!(bounds(whole), Some((whole_id, whole_id)));
        for wrong in ["", "-", "xyz", "0199abcd-0000-7000-8000-0000000000011"] {
            assert_eq!(bounds(wrong), None, "{wrong}");
        }
    }
}
