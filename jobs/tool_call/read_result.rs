//! `read_result`: the built-in tool that reads a long result page by page.

use super::dispatch::Failure;
use super::ledger::Started;
use super::view;
use crate::context::Context;
use crate::domain::ToolOutput;
use crate::job::Turn;
use crate::objects::Pin;
use crate::store::tool_results::{self, Place, Stored};
use anyhow::anyhow;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Its name, which no other tool may have.
pub const READ_RESULT: &str = "read_result";

#[derive(Debug, Deserialize)]
struct Wish {
    handle: Uuid,
    #[serde(default = "first")]
    page: usize,
}

fn first() -> usize {
    1
}

/// One page of a result of the same conversation.
pub async fn run(ctx: &Context, turn: &Turn, started: &Started) -> Result<ToolOutput, Failure> {
    let wish: Wish = match serde_json::from_value(started.call.arguments.clone()) {
        Ok(wish) => wish,
        Err(fault) => {
            return Ok(ToolOutput::error(format!("{READ_RESULT} takes a handle and a page: {fault}")));
        }
    };
    let Some(stored) = find(ctx, turn, started, wish.handle).await? else {
        return Ok(ToolOutput::error("there is no result of this handle in this conversation"));
    };
    let output = load(ctx, &stored).await.map_err(|error| Failure::before(error, true))?;
    Ok(page(&view::text_of(&output), wish.page, ctx.settings.tools.page_chars))
}

async fn find(
    ctx: &Context,
    turn: &Turn,
    started: &Started,
    handle: Uuid,
) -> Result<Option<Stored>, Failure> {
    let found = async {
        let mut tx = crate::store::tenant(&ctx.db, turn.workspace()).await?;
        let found = tool_results::find(&mut tx, started.call.conversation, handle).await?;
        tx.commit().await?;
        Ok::<_, sqlx::Error>(found)
    };
    found.await.map_err(|error| Failure::before(error.into(), true))
}

/// The complete result, from where it lies.
async fn load(ctx: &Context, stored: &Stored) -> anyhow::Result<ToolOutput> {
    let (bucket, key) = match &stored.place {
        Place::Row(value) => return Ok(serde_json::from_value(value.clone())?),
        Place::Object { bucket, key } => (bucket.clone(), key.clone()),
    };
    let room = ctx.spool.room()?;
    let file = room.path().join("result");
    ctx.objects.download(&Pin { bucket, key, etag: None, version_id: None }, &file).await?;
    let bytes = tokio::fs::read(&file).await?;
    if Sha256::digest(&bytes)[..] != stored.sha256[..] {
        return Err(anyhow!("the stored result is not the one that was written"));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

fn page(text: &str, wanted: usize, size: usize) -> ToolOutput {
    let total = text.chars().count();
    let pages = total.div_ceil(size).max(1);
    if wanted == 0 || wanted > pages {
        return ToolOutput::error(format!("page {wanted} is not there: the result has pages 1 to {pages}"));
    }
    let body: String = text.chars().skip((wanted - 1) * size).take(size).collect();
    let mut output = ToolOutput::text(format!("[page {wanted} of {pages}]\n{body}"));
    output.structured_content = Some(json!({ "page": wanted, "pages": pages, "characters": total }));
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_a_text_are_the_text() {
        let text: String = ('a'..='z').cycle().take(95).collect();
        let mut read = String::new();
        for n in 1..=10 {
            let output = page(&text, n, 10);
            assert!(!output.is_error);
            let seen = output.content[0]["text"].as_str().unwrap().to_owned();
            let (line, body) = seen.split_once('\n').unwrap();
            assert_eq!(line, format!("[page {n} of 10]"));
            read.push_str(body);
        }
        assert_eq!(read, text);
        assert!(page(&text, 11, 10).is_error && page(&text, 0, 10).is_error);
        assert!(!page("", 1, 10).is_error);
    }
}
