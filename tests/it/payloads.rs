//! What lies in the queue: other languages write it, and an older worker may have.

use gristmill::domain::{AttachmentId, GenerationId, ToolCallId};
use gristmill::jobs::{Embed, Extract, Fetch, Forget, Rescan, Scan, Tidy, ToolCall, ToolSync, UsageRollup};
use gristmill::queue::Payload;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);

/// Kind, key and payload as they are stored; and what is stored can be read again.
fn wire<P: Payload>(payload: &P) -> String {
    let stored = serde_json::to_string(payload).unwrap();
    let read: P = serde_json::from_str(&stored).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), stored);
    format!("{} {} {stored}", P::KIND, payload.key().unwrap_or_default())
}

#[test]
fn the_stored_form_of_each_payload_stays_as_it_is() {
    let (attachment, generation) = (AttachmentId(ID), GenerationId(ID));
    let forms = [
        wire(&Fetch { attachment }),
        wire(&Scan { attachment }),
        wire(&Extract { attachment }),
        wire(&Embed { generation }),
        wire(&Forget::Attachment(attachment)),
        wire(&Forget::Generation(generation)),
        wire(&Tidy { deep: true }),
        wire(&Rescan { attachment: None }),
        wire(&Rescan { attachment: Some(attachment) }),
        wire(&UsageRollup {}),
        wire(&ToolCall { call: ToolCallId(ID) }),
        wire(&ToolSync { connection: None }),
        wire(&ToolSync { connection: Some(ID) }),
    ];
    insta::assert_snapshot!(forms.join("\n"), @r#"
    fetch 01990000-0000-7000-8000-000000000001 {"attachment":"01990000-0000-7000-8000-000000000001"}
    scan 01990000-0000-7000-8000-000000000001 {"attachment":"01990000-0000-7000-8000-000000000001"}
    extract 01990000-0000-7000-8000-000000000001 {"attachment":"01990000-0000-7000-8000-000000000001"}
    embed 01990000-0000-7000-8000-000000000001 {"generation":"01990000-0000-7000-8000-000000000001"}
    forget 01990000-0000-7000-8000-000000000001 {"attachment":"01990000-0000-7000-8000-000000000001"}
    forget 01990000-0000-7000-8000-000000000001 {"generation":"01990000-0000-7000-8000-000000000001"}
    tidy  {"deep":true}
    rescan  {}
    rescan 01990000-0000-7000-8000-000000000001 {"attachment":"01990000-0000-7000-8000-000000000001"}
    usage_rollup  {}
    tool_call 01990000-0000-7000-8000-000000000001 {"call":"01990000-0000-7000-8000-000000000001"}
    tool_sync  {}
    tool_sync 01990000-0000-7000-8000-000000000001 {"connection":"01990000-0000-7000-8000-000000000001"}
    "#);
}
