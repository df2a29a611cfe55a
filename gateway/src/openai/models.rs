//! `/v1/models`.

use crate::model::Model;
use serde_json::{Value, json};

/// The list of models: one.
pub fn list(model: &Model, context_length: u32) -> Value {
    json!({"object": "list", "data": [one(model, context_length)]})
}

/// The model served.
pub fn one(model: &Model, context_length: u32) -> Value {
    json!({
        "id": model.served_name,
        "object": "model",
        "created": model.loaded_unix_s,
        "owned_by": "tandem",
        "root": model.path,
        "parent": null,
        "max_model_len": context_length,
        "permission": [],
    })
}
