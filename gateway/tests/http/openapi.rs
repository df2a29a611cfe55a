//! `/openapi.json` is held to the code: routes, methods, and every field of every body.

use crate::support::{Answer, Gateway};
use gateway::http::paths;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Fields that are read where another is not given.
const INSTEAD_OF: [(&str, &str); 3] =
    [("input_ids", "text"), ("messages", "prompt"), ("text_1", "query")];

#[tokio::test]
async fn every_route_is_there_and_takes_what_it_says() {
    let gateway = Gateway::start(|_| {}).await;
    let document = gateway.get("/openapi.json").await.json();
    let documented = document["paths"].as_object().unwrap();
    let served: BTreeSet<String> =
        paths().into_iter().map(|path| path.replace("{*", "{")).collect();
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), served);
    for (path, methods) in documented {
        let path = path.replace("{model}", "tiny").replace("{file}", "page.css");
        for method in ["get", "post", "put", "delete", "patch"] {
            let answer = gateway.request(&method.to_uppercase(), &path, "", "").await;
            let is_taken = answer.status != 405;
            assert_eq!(is_taken, methods.get(method).is_some(), "{method} {path}");
            let is_missing = answer.status == 404 && !answer.body.contains("request_not_found");
            assert!(!is_missing, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_field_that_is_named_is_read() {
    let gateway = Gateway::start(|_| {}).await;
    let document = gateway.get("/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    let mut checked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let body = &methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let Some(name) = body.as_str() else { continue };
        let schema = &schemas[name.strip_prefix("#/components/schemas/").unwrap()];
        let example = schema["examples"][0].as_object().unwrap();
        let whole = gateway.post(path, &json!(example).to_string()).await;
        assert!([200, 503].contains(&whole.status), "{path}: {}", whole.body);
        for (field, schema) in schema["properties"].as_object().unwrap() {
            let send = |value: Value| {
                let mut body = example.clone();
                if let Some((_, other)) = INSTEAD_OF.iter().find(|(own, _)| own == field) {
                    body.remove(*other);
                }
                body.insert(field.clone(), value);
                json!(body).to_string()
            };
            for wrong in wrong(schema) {
                refused(&gateway.post(path, &send(wrong)).await, path, field);
                checked += 1;
            }
            for (inner, schema) in schema["properties"].as_object().unwrap_or(&Map::new()) {
                for wrong in wrong(schema) {
                    let answer = gateway.post(path, &send(json!({inner: wrong}))).await;
                    refused(&answer, path, inner);
                    checked += 1;
                }
            }
        }
        for field in schema["required"].as_array().unwrap() {
            let field = field.as_str().unwrap();
            let mut body = example.clone();
            body.remove(field);
            refused(&gateway.post(path, &json!(body).to_string()).await, path, field);
        }
    }
    assert!(checked > 300, "{checked}");
}

fn refused(answer: &Answer, path: &str, field: &str) {
    let message = answer.error()["message"].as_str().unwrap_or_default().to_owned();
    let is_named = message.contains(field) || (field == "model" && answer.status == 404);
    assert!([400, 404].contains(&answer.status) && is_named, "{path} {field}: {}", answer.body);
}

/// A value of each type that the schema does not have; none where it has them all.
fn wrong(schema: &Value) -> Vec<Value> {
    let mut types = BTreeSet::new();
    collect(schema, &mut types);
    if types.is_empty() {
        return Vec::new();
    }
    let values = [
        ("string", json!("no")),
        ("boolean", json!(true)),
        ("number", json!(1.5)),
        ("array", json!([])),
        ("object", json!({"no": true})),
    ];
    let of_others = values.into_iter().filter(|(kind, _)| !types.contains(*kind));
    of_others.map(|(_, value)| value).collect()
}

fn collect(schema: &Value, types: &mut BTreeSet<&'static str>) {
    let name = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let known = ["null", "boolean", "number", "integer", "string", "array", "object"];
    let one = schema["type"].as_str().map(|one| vec![json!(one)]);
    let of_type = schema["type"].as_array().cloned().or(one).unwrap_or_default();
    types.extend(known.into_iter().filter(|known| of_type.contains(&json!(known))));
    types.extend(schema["enum"].as_array().into_iter().flatten().map(name));
    for one in schema["anyOf"].as_array().into_iter().flatten() {
        collect(one, types);
    }
}
