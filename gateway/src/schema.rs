//! JSON schemas whose objects have the properties that they list, and no others.
//!
//! To JSON Schema, silence means that there may be others. Who writes a schema for a model's output
//! means the opposite: OpenAI's strict mode takes only schemas in which every object says so, and
//! what vLLM and SGLang enforce schemas with has it so. Clients that know them leave it out.

use serde_json::{Map, Value};

/// What says of a schema's `properties` that there may be others, or whether.
const OPENING: [&str; 7] = [
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
];

/// What adds another schema to the one that it stands in.
const ADDING: [&str; 4] = ["allOf", "anyOf", "oneOf", "$ref"];

/// What a schema says itself of an object.
const OWN: [&str; 5] =
    ["properties", "patternProperties", "additionalProperties", "required", "minProperties"];

/// The schema, with every object closed that lists its properties and does not say whether there
/// are others.
///
/// Parts that one object is put together of would each refuse what the others list. Where there
/// are such, at whatever depth, no more than the outermost object is closed, and not even that if
/// it may be a part itself.
pub fn closed(schema: &Value) -> Value {
    let mut outermost = schema.clone();
    outermost.as_object_mut().into_iter().for_each(close);
    let mut all = outermost.clone();
    match close_all(&mut all) {
        true => all,
        false if refers_to_root(schema) => schema.clone(),
        false => outermost,
    }
}

/// Whether a reference, at whatever depth, names no definition. One in an example counts too: then
/// an object stays open that could be closed.
fn refers_to_root(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.iter().any(|(key, value)| match value.as_str() {
            Some(to) => key == "$ref" && !to.starts_with("#/"),
            None => refers_to_root(value),
        }),
        Value::Array(list) => list.iter().any(refers_to_root),
        _ => false,
    }
}

/// False once an object is met that is put together of several.
fn close_all(schema: &mut Value) -> bool {
    let Value::Object(map) = schema else { return true };
    let has = |keys: &[&str]| keys.iter().filter(|key| map.contains_key(**key)).count();
    let many = map.get("allOf").and_then(Value::as_array).is_some_and(|list| list.len() > 1);
    if many || has(&ADDING) > 1 || (has(&ADDING) > 0 && has(&OWN) > 0) {
        return false;
    }
    // An object that lists none is any object, where it is not all there is.
    if map.get("properties").and_then(Value::as_object).is_some_and(|listed| !listed.is_empty()) {
        close(map);
    }
    map.iter_mut().flat_map(schemas).all(close_all)
}

/// Closes an object, unless it asks for more than it lists.
fn close(map: &mut Map<String, Value>) {
    let Some(listed) = map.get("properties").and_then(Value::as_object) else { return };
    let required = map.get("required").and_then(Value::as_array);
    let lists = |name: &Value| name.as_str().is_some_and(|name| listed.contains_key(name));
    let least = map.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let fits = required.is_none_or(|names| names.iter().all(lists)) && least <= listed.len() as u64;
    if fits && !OPENING.iter().any(|key| map.contains_key(*key)) {
        map.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// The schemas in a field of one.
fn schemas<'a>((key, value): (&String, &'a mut Value)) -> Vec<&'a mut Value> {
    match (key.as_str(), value) {
        ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(by_name)) => {
            by_name.values_mut().collect()
        }
        ("items" | "prefixItems" | "allOf" | "anyOf" | "oneOf", Value::Array(list)) => {
            list.iter_mut().collect()
        }
        ("items" | "additionalItems" | "additionalProperties", one) => vec![one],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An object that lists `properties`, closed or silent.
    fn object(properties: &Value, closed: bool) -> Value {
        let mut object = json!({"type": "object", "properties": properties});
        if closed {
            object["additionalProperties"] = json!(false);
        }
        object
    }

    #[test]
    fn objects_that_list_their_properties_are_closed_at_every_depth() {
        let schema = |closed| {
            let leaf = || object(&json!({"n": {"type": "integer"}}), closed);
            let choice =
                |key: &str| json!({key: [leaf(), {"type": "null"}, {"$ref": "#/$defs/d"}]});
            let mut root = object(
                &json!({
                    "inner": leaf(),
                    "list": {"type": "array", "items": leaf()},
                    "pair": {"type": "array", "prefixItems": [leaf(), leaf()], "items": false},
                    "any": choice("anyOf"),
                    "one": choice("oneOf"),
                    "described": {"allOf": [leaf()], "description": "one"},
                    "map": {"type": "object", "additionalProperties": leaf()},
                    // Names of properties are no keywords.
                    "allOf": leaf(), "properties": leaf(),
                }),
                closed,
            );
            root["$defs"] = json!({"d": leaf()});
            root
        };
        assert_eq!(super::closed(&schema(false)), schema(true));
    }

    #[test]
    fn what_says_whether_there_are_others_stays() {
        let property = json!({"a": {"type": "string"}});
        for inner in [
            json!({"type": "object", "properties": property, "additionalProperties": true}),
            json!({"type": "object", "properties": property, "unevaluatedProperties": false}),
            json!({"type": "object", "properties": property, "patternProperties": {"^x": {}}}),
            json!({"type": "object"}),
            json!({"type": "object", "properties": {}}),
            json!({"type": "object", "properties": property, "required": ["a", "b"]}),
            json!({"type": "object", "properties": property, "minProperties": 2}),
            json!({"enum": [{"properties": {}}], "default": {"properties": {}}}),
            json!(true),
        ] {
            let schema = |closed| object(&json!({"inner": inner}), closed);
            assert_eq!(closed(&schema(false)), schema(true));
        }
    }

    #[test]
    fn an_object_of_several_parts_stays_and_all_that_it_may_refer_to() {
        let leaf = || object(&json!({"n": {"type": "integer"}}), false);
        for inner in [
            json!({"allOf": [{"$ref": "#/$defs/d"}, leaf()]}),
            json!({"properties": {"m": {}}, "$ref": "#/$defs/d"}),
            json!({"anyOf": [leaf(), leaf()], "allOf": [leaf()]}),
            json!({"$ref": "#/$defs/d", "anyOf": [leaf()]}),
            json!({"$ref": "#/$defs/d", "patternProperties": {"^x-": {}}}),
            json!({"$ref": "#/$defs/d", "required": ["more"]}),
            json!({"allOf": [leaf()], "additionalProperties": {"type": "string"}}),
            json!({"properties": {"m": {}}, "anyOf": [leaf(), {"$ref": "#/$defs/d"}]}),
        ] {
            let schema = |closed| {
                let mut root = object(&json!({"inner": inner, "other": leaf()}), closed);
                root["$defs"] = json!({"d": leaf()});
                root
            };
            assert_eq!(closed(&schema(false)), schema(true));
            assert_eq!(closed(&inner), inner);
        }
    }

    #[test]
    fn what_is_a_part_of_itself_stays() {
        let more = || object(&json!({"m": {}}), false);
        let tree = |inner: Value, closed| object(&json!({"inner": inner, "n": {}}), closed);
        let extended = tree(json!({"allOf": [{"$ref": "#"}, more()]}), false);
        assert_eq!(closed(&extended), extended);
        let list = |closed| tree(json!({"type": "array", "items": {"$ref": "#"}}), closed);
        assert_eq!(closed(&list(false)), list(true));
    }
}
