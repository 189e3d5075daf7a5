//! Operations of documents as people write them.

use super::super::schema;
use super::*;
use std::fmt::Write as _;

/// Our own, in the form of the usual pet shop.
const SHOP: &str = r##"
openapi: 3.0.3
info: { title: Shop, version: "1" }
servers:
  - url: https://{region}.shop.example/v2
    variables: { region: { default: eu } }
paths:
  /pets/{petId}:
    parameters:
      - $ref: "#/components/parameters/PetId"
      - { name: verbose, in: query, schema: { type: boolean } }
    get:
      operationId: getPet
      summary: One pet.
      parameters:
        - { name: verbose, in: query, description: More of it., schema: { type: string, enum: [a, b] } }
        - { name: X-Tenant, in: header, required: true, schema: { type: string } }
        - { name: Accept, in: header, schema: { type: string } }
        - { name: session, in: cookie, schema: { type: string } }
  /pets:
    post:
      operationId: addPet
      description: Adds a pet.
      requestBody: { $ref: "#/components/requestBodies/Pet" }
    get:
      operationId: findPets
      servers: [{ url: "https://find.example" }]
      parameters:
        - { name: ids, in: query, explode: false, schema: { type: array, items: { type: integer } } }
        - { name: tags, in: query, schema: { type: array, items: { type: string } } }
        - { name: bars, in: query, style: pipeDelimited, schema: { type: array, items: { type: string } } }
        - { name: filter, in: query, style: deepObject, explode: true, schema: { type: object } }
        - { name: page, in: query, schema: { type: object } }
        - { name: raw, in: query, content: { application/json: { schema: { type: object } } } }
  /upload:
    post:
      operationId: upload
      requestBody: { required: true, content: { multipart/form-data: { schema: { type: object } } } }
  /same/{id}:
    post:
      operationId: same
      parameters:
        - { name: id, in: path, required: true, schema: { type: string } }
        - { name: id, in: query, schema: { type: string } }
        - { name: body, in: query, schema: { type: string } }
      requestBody: { content: { application/vnd.shop+json: { schema: { type: object } } } }
  /styles/{simple}/{list}/{label}/{labels}/{matrix}/{pairs}:
    get:
      operationId: styles
      parameters:
        - { name: simple, in: path, required: true, schema: { type: string } }
        - { name: list, in: path, required: true, schema: { type: array } }
        - { name: label, in: path, required: true, style: label, schema: { type: string } }
        - { name: labels, in: path, required: true, style: label, explode: true, schema: { type: array } }
        - { name: matrix, in: path, required: true, style: matrix, explode: true, schema: { type: array } }
        - { name: pairs, in: path, required: true, explode: true, schema: { type: object } }
  /broken:
    get:
      operationId: broken
      parameters: [{ $ref: "#/components/parameters/Nowhere" }]
  /remote:
    post:
      operationId: remote
      requestBody: { content: { application/json: { schema: { $ref: "https://evil.example/schema.json" } } } }
  /loop:
    get:
      operationId: loop
      parameters: [{ $ref: "#/components/parameters/A" }]
components:
  parameters:
    PetId: { name: petId, in: path, required: true, schema: { type: integer, minimum: 0, exclusiveMinimum: true } }
    A: { $ref: "#/components/parameters/B" }
    B: { $ref: "#/components/parameters/A" }
  requestBodies:
    Pet:
      required: true
      content:
        application/json: { schema: { $ref: "#/components/schemas/Pet" } }
  schemas:
    Pet:
      type: object
      required: [id, name]
      properties:
        id: { type: integer, readOnly: true }
        name: { type: string, example: Rex }
        nick: { type: string, nullable: true }
        example: { type: string }
        parent: { $ref: "#/components/schemas/Pet" }
        owner: { $ref: "#/components/schemas/a~1b" }
    a/b: { type: object, properties: { mail: { type: string } } }
"##;

fn document() -> Document {
    Document::read(&SHOP.into()).unwrap()
}

fn operation(id: &str) -> Operation {
    Operation::read(&document(), Name::Id(id)).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "so that each json! stands bare")]
fn fill(id: &str, arguments: Value) -> Result<Request, Misfit> {
    operation(id).fill(&Url::parse("https://x.example/v2").unwrap(), arguments.as_object().unwrap())
}

#[test]
fn an_operation_is_found_by_id_or_by_route_and_knows_its_server() {
    let by_route = Operation::read(&document(), Name::Route("GET", "/pets/{petId}")).unwrap();
    assert_eq!(by_route.schema, operation("getPet").schema);
    assert_eq!(by_route.server.as_deref(), Some("https://eu.shop.example/v2"));
    assert_eq!(by_route.description, "One pet.");
    assert_eq!(operation("findPets").server.as_deref(), Some("https://find.example"));
    assert!(matches!(Operation::read(&document(), Name::Id("nope")), Err(ToolError::NoOperation(_))));
}

#[test]
fn the_schema_shows_what_the_operation_takes() {
    let expected = json!({
        "type": "object",
        "properties": {
            "petId": { "type": "integer", "exclusiveMinimum": 0 },
            "verbose": { "type": "string", "enum": ["a", "b"], "description": "More of it." },
            "X-Tenant": { "type": "string" },
        },
        "required": ["petId", "X-Tenant"],
        "additionalProperties": false,
    });
    assert_eq!(operation("getPet").schema, expected);
}

#[test]
fn a_schema_brings_the_schemas_it_refers_to() {
    let expected = json!({
        "type": "object",
        "properties": { "body": { "$ref": "#/$defs/Pet" } },
        "required": ["body"],
        "additionalProperties": false,
        "$defs": {
            "Pet": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "type": "string" },
                    "nick": { "type": ["string", "null"] },
                    "example": { "type": "string" },
                    "parent": { "$ref": "#/$defs/Pet" },
                    "owner": { "$ref": "#/$defs/a_1b" },
                },
            },
            "a_1b": { "type": "object", "properties": { "mail": { "type": "string" } } },
        },
    });
    let schema = operation("addPet").schema;
    assert_eq!(schema, expected);
    let validator = schema::compile(&schema).unwrap();
    let judge = |arguments: Value| schema::faults(&validator, &arguments);
    assert_eq!(
        judge(json!({ "body": { "name": "Rex", "parent": { "name": "Old", "nick": null } } })),
        Ok(())
    );
    for (arguments, part) in [
        (json!({ "body": { "name": 7 } }), "/body/name: 7 is not of type \"string\""),
        (json!({ "body": { "name": "Rex", "parent": {} } }), "/body/parent: \"name\" is a required property"),
        (json!({ "body": { "name": "Rex" }, "extra": 1 }), "'extra'"),
    ] {
        let told = judge(arguments).unwrap_err();
        assert!(told.contains(part), "{part}\n{told}");
    }
}

#[test]
fn parameters_go_where_their_styles_say() {
    let request = fill("getPet", json!({ "petId": 7, "verbose": "a", "X-Tenant": "acme" })).unwrap();
    assert_eq!(request.url.as_str(), "https://x.example/v2/pets/7?verbose=a");
    assert_eq!(request.headers["x-tenant"], "acme");
    let arguments = json!({ "ids": [1, 2], "tags": ["a b", "c,d"], "bars": ["x", "y"], "filter": { "k": "v&w" },
                            "page": { "size": 5 }, "raw": { "a": [1] } });
    assert_eq!(
        fill("findPets", arguments).unwrap().url.query().unwrap(),
        "ids=1,2&tags=a%20b&tags=c%2Cd&bars=x%7Cy&filter%5Bk%5D=v%26w&size=5&raw=%7B%22a%22%3A%5B1%5D%7D"
    );
    let arguments = json!({ "simple": "s", "list": [1, 2], "label": "l", "labels": ["a", "b"], "matrix": [3, 4],
                            "pairs": { "k": "v" } });
    assert_eq!(
        fill("styles", arguments).unwrap().url.path(),
        "/v2/styles/s/1,2/.l/.a.b/;matrix=3;matrix=4/k=v"
    );
    let body = json!({ "name": "Rex" });
    assert_eq!(fill("addPet", json!({ "body": body })).unwrap().body, Some(body));
}

#[test]
fn names_that_are_alike_are_told_apart() {
    let same = operation("same");
    let names: Vec<_> = same.schema["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["id", "query_id", "body", "request_body"]);
    let request =
        fill("same", json!({ "id": "p", "query_id": "q", "body": "b", "request_body": { "x": 1 } })).unwrap();
    assert_eq!(request.url.as_str(), "https://x.example/v2/same/p?id=q&body=b");
    assert_eq!(request.body, Some(json!({ "x": 1 })));
}

#[test]
fn values_that_would_change_the_path_are_refused() {
    for hostile in ["..", ".", "a/b", "", "\\", "a\nb"] {
        let arguments = json!({ "id": hostile });
        assert!(fill("same", arguments).is_err(), "{hostile:?}");
    }
    let arguments = json!({ "simple": "s", "list": [".."], "label": ".", "labels": ["a"], "matrix": ["m"], "pairs": { "k": "v" } });
    assert!(fill("styles", arguments).is_err());
    assert!(fill("getPet", json!({ "petId": 7, "X-Tenant": "a\r\nb: c" })).is_err());
    // A brace of an argument's is no place for the next one.
    let request = fill("same", json!({ "id": "{id}" })).unwrap();
    assert_eq!(request.url.path(), "/v2/same/%7Bid%7D");
}

#[test]
fn what_cannot_be_done_is_refused_when_the_tool_is_read() {
    for (id, part) in
        [("upload", "a body that is not JSON"), ("broken", "Nowhere"), ("loop", "chain"), ("remote", "evil")]
    {
        let wrong = Operation::read(&document(), Name::Id(id)).unwrap_err().to_string();
        assert!(wrong.contains(part), "{id}: {wrong}");
    }
    for source in ["swagger: '2.0'", "{\"openapi\": \"2.0\"}", "[1]", "a: [", "{", "openapi: 4.0.0"] {
        assert!(Document::read(&source.into()).is_err(), "{source}");
    }
    let aliases = "openapi: 3.0.0\na: &a [x, x]\nb: [*a, *a, *a]\n";
    assert!(Document::read(&aliases.into()).is_ok());
    let mut levels = String::from("openapi: 3.0.0\nl0: &l0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let of = format!("*l{}, ", level - 1).repeat(10);
        writeln!(levels, "l{level}: &l{level} [{}]", of.trim_end_matches(", ")).unwrap();
    }
    assert!(Document::read(&levels.as_str().into()).is_err(), "ten to the tenth");
}

#[test]
fn a_document_of_3_1_keeps_its_own_json_schema() {
    let document = json!({
        "openapi": "3.1.0",
        "paths": { "/x": { "put": { "operationId": "x", "requestBody": { "content": { "application/json": {
            "schema": { "type": ["object", "null"], "properties": { "n": { "exclusiveMinimum": 3 } } } } } } } } },
    });
    let operation = Operation::read(&Document::read(&document).unwrap(), Name::Id("x")).unwrap();
    let body = json!({ "type": ["object", "null"], "properties": { "n": { "exclusiveMinimum": 3 } } });
    assert_eq!(operation.schema["properties"]["body"], body);
    assert_eq!(operation.server, None);
}
