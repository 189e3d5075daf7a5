//! rmcp's results in our words.

use super::error::McpError;
use super::{Answer, Definition, Task};
use crate::domain::ToolOutput;
use rmcp::model::{
    CallToolResult, DetailedTask, InputRequest, InputRequests, InputResponses, ServerResult, TaskPayload,
    Tool,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Between two looks at a task whose server names no interval, and the bounds of one it names.
const POLL: Duration = Duration::from_secs(2);
const POLL_LEAST: Duration = Duration::from_millis(100);
const POLL_MOST: Duration = Duration::from_mins(5);

/// What an answer to `tools/call` means, or what the request is to be repeated with.
pub(super) enum Reading {
    Answer(Answer),
    Again { state: Option<String>, responses: Option<InputResponses> },
}

pub(super) fn read(result: ServerResult) -> Result<Reading, McpError> {
    let answer = match result {
        ServerResult::CallToolResult(result) => Answer::Done(output(result)),
        ServerResult::EmptyResult(_) => Answer::Done(ToolOutput::default()),
        ServerResult::CreateTaskResult(created) => Answer::Task(task(created.task)),
        ServerResult::InputRequiredResult(wanted) => {
            let responses = wanted.input_requests.map(declined).transpose()?.filter(|none| !none.is_empty());
            if responses.is_none() && wanted.request_state.is_none() {
                return Err(McpError::WantsInput);
            }
            return Ok(Reading::Again { state: wanted.request_state, responses });
        }
        // A kind of content that rmcp does not know makes the whole result one.
        ServerResult::CustomResult(result) => Answer::Done(lenient(result.0)?),
        _ => return Err(McpError::Unexpected),
    };
    Ok(Reading::Answer(answer))
}

/// Answers to what a server wants to know from a person: nobody says anything. What it wants from
/// a model or of our files has no such answer.
fn declined(asked: InputRequests) -> Result<InputResponses, McpError> {
    let decline = |(name, request)| match request {
        InputRequest::Elicitation(_) => Ok((name, json!({ "action": "decline" }))),
        _ => Err(McpError::WantsInput),
    };
    asked.into_iter().map(decline).collect()
}

fn output(result: CallToolResult) -> ToolOutput {
    ToolOutput {
        content: result.content.into_iter().map(value).collect(),
        structured_content: result.structured_content,
        is_error: result.is_error.unwrap_or_default(),
    }
}

fn lenient(result: Value) -> Result<ToolOutput, McpError> {
    let Value::Object(mut fields) = result else { return Err(McpError::Unexpected) };
    let Some(Value::Array(content)) = fields.remove("content") else { return Err(McpError::Unexpected) };
    Ok(ToolOutput {
        content,
        structured_content: fields.remove("structuredContent"),
        is_error: fields.get("isError").and_then(Value::as_bool).unwrap_or_default(),
    })
}

/// A task's state: its result, or that it goes on.
pub(super) fn state(detailed: DetailedTask) -> Result<Answer, McpError> {
    let message = detailed.task.status_message.clone();
    match detailed.payload {
        TaskPayload::Working => Ok(Answer::Task(task(detailed.task))),
        TaskPayload::Completed { result } => {
            let result = serde_json::from_value::<CallToolResult>(Value::Object(result.clone()))
                .map_or_else(|_| lenient(Value::Object(result)), |result| Ok(output(result)))?;
            Ok(Answer::Done(result))
        }
        TaskPayload::InputRequired { .. } => Err(McpError::WantsInput),
        TaskPayload::Failed { error } => {
            let said = error.get("message").and_then(Value::as_str).map(str::to_owned);
            Err(McpError::Task { status: "failed", message: said.or(message) })
        }
        TaskPayload::Cancelled => Err(McpError::Task { status: "cancelled", message }),
        _ => Err(McpError::Unexpected),
    }
}

fn task(task: rmcp::model::Task) -> Task {
    Task {
        id: task.task_id,
        poll_after: task.poll_interval_ms.map_or(POLL, Duration::from_millis).clamp(POLL_LEAST, POLL_MOST),
        kept_for: task.ttl_ms.map(Duration::from_millis),
        message: task.status_message,
    }
}

pub(super) fn definition(tool: Tool) -> Definition {
    Definition {
        name: tool.name.into_owned(),
        title: tool.title,
        description: tool.description.map(std::borrow::Cow::into_owned),
        input_schema: Map::clone(&tool.input_schema),
        output_schema: tool.output_schema.map(|schema| Map::clone(&schema)),
        annotations: tool.annotations.map(value),
    }
}

/// What was read from JSON goes back into it.
pub(super) fn value(part: impl Serialize) -> Value {
    serde_json::to_value(part).unwrap_or_default()
}
