//! Arguments stay in their places, whatever they are.

use super::*;
use proptest::prelude::*;

fn template(value: Value) -> Template {
    let template: Template = serde_json::from_value(value).unwrap();
    template.check().unwrap();
    template
}

fn items() -> Template {
    template(json!({
        "method": "post",
        "path": "/v1/items/{{id}}/parts/x{{part}}y",
        "query": { "q": "{{q}}", "both": "a {{q}} b {{part}}", "tags": "{{tags}}", "fixed": 1 },
        "headers": { "x-trace": "{{trace}}", "x-both": "t-{{trace}}" },
        "body": { "name": "{{name}}", "say": "hello {{name}}!", "list": ["{{count}}", "{{gone}}"], "deep": { "tags": "{{tags}}" },
                  "fixed": true, "gone": "{{gone}}" },
    }))
}

#[expect(clippy::needless_pass_by_value, reason = "so that each json! stands bare")]
fn fill(template: &Template, arguments: Value) -> Result<Request, Misfit> {
    template.fill(&Url::parse("https://api.example/base/").unwrap(), arguments.as_object().unwrap())
}

#[test]
fn arguments_are_set_with_their_own_types() {
    let arguments = json!({ "id": 7, "part": "p q", "q": "a&b=c#d", "tags": ["x", "y z"], "trace": "abc", "name": "Ann \"A\"",
                            "count": 3 });
    let request = fill(&items(), arguments).unwrap();
    assert_eq!(request.method, Method::POST);
    assert_eq!(
        request.url.as_str(),
        "https://api.example/base/v1/items/7/parts/xp%20qy?both=a%20a%26b%3Dc%23d%20b%20p%20q&fixed=1&q=a%26b%3Dc%23d\
         &tags=x&tags=y%20z"
    );
    assert_eq!(request.headers["x-trace"], "abc");
    assert_eq!(request.headers["x-both"], "t-abc");
    let body = json!({ "name": "Ann \"A\"", "say": "hello Ann \"A\"!", "list": [3], "deep": { "tags": ["x", "y z"] },
                       "fixed": true });
    assert_eq!(request.body, Some(body));
}

#[test]
fn a_value_that_looks_like_a_placeholder_is_a_text() {
    let arguments = json!({ "id": "1", "part": "2", "q": "{{name}}", "trace": "{{id}}", "name": "{{q}}" });
    let request = fill(&items(), arguments).unwrap();
    assert_eq!(request.body.as_ref().unwrap()["name"], "{{q}}");
    assert_eq!(request.body.as_ref().unwrap()["say"], "hello {{q}}!");
    assert_eq!(request.headers["x-trace"], "{{id}}");
}

#[test]
fn values_that_would_leave_their_place_are_refused() {
    let with = |name: &str, value: Value| {
        let mut arguments = json!({ "id": "1", "part": "2", "trace": "t" });
        arguments[name] = value;
        fill(&items(), arguments).map(|request| request.url.to_string())
    };
    for id in ["..", ".", "", "a/b", "a\\b", "../admin", "a\r\nb", "/", "\u{0}", "%2e%2e/x"] {
        assert!(with("id", id.into()).is_err(), "{id:?}: {:?}", with("id", id.into()));
    }
    assert!(with("id", json!(["a"])).is_err());
    assert!(with("id", json!({"a": 1})).is_err());
    // Escapes are escaped again, so no server reads them as a way up.
    assert!(with("id", "%2e%2e".into()).unwrap().contains("/items/%252e%252e/"));
    for trace in ["a\r\nx: y", "a\nb", "a\rb", "a\u{0}b", "a\u{7f}"] {
        assert!(with("trace", trace.into()).is_err(), "{trace:?}");
    }
}

#[test]
fn dots_made_of_two_arguments_are_seen() {
    let two = template(json!({ "method": "GET", "path": "/a/{{x}}{{y}}/b" }));
    assert_eq!(fill(&two, json!({ "x": ".", "y": "." })).unwrap_err(), Misfit::Dots("..".to_owned()));
    assert!(fill(&two, json!({ "x": ".", "y": "x" })).is_ok());
    let beside = template(json!({ "method": "GET", "path": "/a/.{{x}}/b" }));
    assert!(fill(&beside, json!({ "x": "." })).is_err());
}

#[test]
fn slashes_are_let_through_where_the_template_says_so() {
    let path = |how: &str| {
        template(json!({ "method": "GET", "path": "/files/{{path}}", "slashes": { "path": how } }))
    };
    let segments = fill(&path("segments"), json!({ "path": "a b/c" })).unwrap();
    assert_eq!(segments.url.path(), "/base/files/a%20b/c");
    let encoded = fill(&path("encoded"), json!({ "path": "group/project" })).unwrap();
    assert_eq!(encoded.url.path(), "/base/files/group%2Fproject");
    for up in ["../x", "a/../../x", "a//b", "/a", "a/", "a/./b", "a\\..\\b"] {
        assert!(fill(&path("segments"), json!({ "path": up })).is_err(), "{up}");
    }
}

#[test]
fn a_template_with_a_placeholder_where_none_may_stand_is_refused() {
    for wrong in [
        json!({ "method": "{{m}}", "path": "/" }),
        json!({ "method": "TRACE", "path": "/" }),
        json!({ "method": "GET", "path": "{{path}}" }),
        json!({ "method": "GET", "path": "/x?{{q}}" }),
        json!({ "method": "GET", "path": "/", "query": { "{{name}}": "x" } }),
        json!({ "method": "GET", "path": "/", "headers": { "{{name}}": "x" } }),
        json!({ "method": "GET", "path": "/", "headers": { "Host": "x" } }),
        json!({ "method": "GET", "path": "/", "headers": { "authorization": "Bearer {{t}}" } }),
        json!({ "method": "GET", "path": "/", "headers": { "Transfer-Encoding": "chunked" } }),
        json!({ "method": "POST", "path": "/", "body": { "a": [{ "{{key}}": 1 }] } }),
    ] {
        let template: Template = serde_json::from_value(wrong.clone()).unwrap();
        assert!(template.check().is_err(), "{wrong}");
    }
}

#[test]
fn a_template_without_a_schema_takes_what_it_has_places_for() {
    let schema = items().schema();
    let names: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["count", "gone", "id", "name", "part", "q", "tags", "trace"]);
    assert_eq!(schema["required"], json!(["id", "part"]));
    // An object in a body's place could be somebody's query language.
    let validator = super::super::schema::compile(&schema).unwrap();
    let judge = |name: Value| {
        super::super::schema::faults(&validator, &json!({ "id": 1, "part": "x", "name": name }))
    };
    assert_eq!(judge(json!("me")), Ok(()));
    assert!(judge(json!({ "$ne": null })).is_err() && judge(json!([{ "$ne": null }])).is_err());
}

#[test]
fn a_schema_names_every_argument_that_has_a_place() {
    let config =
        json!({ "request": { "method": "POST", "path": "/", "body": { "a": "{{a}}", "b": "{{b}}" } } });
    let read = |schema: Value| super::super::Tool::read(&config, Some("https://a.example"), &schema);
    let half = json!({ "properties": { "a": { "type": "string" } } });
    assert!(matches!(read(half), Err(ToolError::Undeclared(name)) if name == "b"));
    assert!(read(json!({ "properties": { "a": {}, "b": {} } })).is_ok() && read(json!({})).is_ok());
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[./\\\\%2eEfF?#&=:;@ \r\n\"'{}]{0,12}",
        proptest::sample::select(vec![
            "..",
            "../..",
            "%2e%2e%2f",
            "a/../..",
            "\"},{\"x\":\"",
            "x\r\nhost: evil",
            "//evil.example",
            "{{id}}"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_argument_leaves_its_place(id in hostile(), part in hostile(), q in hostile(), trace in hostile(), name in hostile()) {
        let arguments = json!({ "id": id, "part": part, "q": q, "trace": trace, "name": name, "tags": [q, name] });
        let Ok(request) = fill(&items(), arguments) else { return Ok(()) };
        // The path: as many segments as the template has, each the value it was given.
        prop_assert_eq!(request.url.origin().ascii_serialization(), "https://api.example");
        prop_assert!(request.url.username().is_empty() && request.url.fragment().is_none());
        let segments: Vec<_> = request.url.path_segments().unwrap().map(decoded).collect();
        prop_assert_eq!(&segments, &["base".to_owned(), "v1".into(), "items".into(), id, "parts".into(), format!("x{part}y")]);
        // The address survives another reading, as a server or a proxy would read it.
        prop_assert_eq!(Url::parse(request.url.as_str()).unwrap(), request.url.clone());
        // The query: the names of the template, and the values as given.
        let pairs: Vec<(String, String)> = request.url.query_pairs().into_owned().collect();
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [own("both", &format!("a {q} b {part}")), own("fixed", "1"), own("q", &q), own("tags", &q), own("tags", &name)];
        prop_assert_eq!(&pairs, &expected);
        // Headers: one line each.
        prop_assert_eq!(request.headers.len(), 2);
        prop_assert_eq!(request.headers["x-trace"].as_bytes(), trace.as_bytes());
        prop_assert!(!trace.contains(['\r', '\n']));
        // The body: the template's keys, and the values as given.
        let body: Value = serde_json::from_str(&request.body.unwrap().to_string()).unwrap();
        let expected = json!({ "name": name, "say": format!("hello {name}!"), "list": [], "deep": { "tags": [q, name] }, "fixed": true });
        prop_assert_eq!(body, expected);
    }

    #[test]
    fn a_path_of_segments_stays_below_its_own(path in hostile()) {
        let files = template(json!({ "method": "GET", "path": "/files/{{path}}", "slashes": { "path": "segments" } }));
        if let Ok(request) = fill(&files, json!({ "path": path })) {
            let segments: Vec<_> = request.url.path_segments().unwrap().map(decoded).collect();
            prop_assert_eq!(&segments[..2], &["base", "files"]);
            prop_assert_eq!(segments[2..].join("/"), path);
            prop_assert!(!segments.iter().any(|segment| segment == ".." || segment == "." || segment.is_empty()));
        }
    }
}

/// One segment without its escapes.
fn decoded(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}
