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

/// What adds to the properties that stand beside it.
const ADDING: [&str; 4] = ["allOf", "anyOf", "oneOf", "$ref"];

/// The schema, with every object closed that lists its properties and does not say whether there
/// are others.
///
/// Parts that one object is put together of would each refuse what the others list. Where there
/// are such, at whatever depth, no more than the outermost object is closed.
pub fn closed(schema: &Value) -> Value {
    let mut all = schema.clone();
    if close_all(&mut all) {
        return all;
    }
    let mut outermost = schema.clone();
    outermost.as_object_mut().into_iter().for_each(close);
    outermost
}

/// False once an object is met that is put together of several.
fn close_all(schema: &mut Value) -> bool {
    let Value::Object(map) = schema else { return true };
    let several = map.get("allOf").and_then(Value::as_array).is_some_and(|list| list.len() > 1);
    let adds = map.contains_key("properties") && ADDING.iter().any(|key| map.contains_key(*key));
    if several || adds {
        return false;
    }
    close(map);
    map.iter_mut().flat_map(schemas).all(close_all)
}

fn close(map: &mut Map<String, Value>) {
    if map.contains_key("properties") && !OPENING.iter().any(|key| map.contains_key(*key)) {
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
        ("items" | "additionalProperties", one) => vec![one],
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
}
