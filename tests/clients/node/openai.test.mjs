// The `openai` package for Node against a running ring at TANDEM_URL.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const url = process.env.TANDEM_URL;
const api = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const model = (await api.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const fields = { model, messages, max_tokens: 12, temperature: 0 };
const number = {
  type: "object",
  properties: { n: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["n"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "count", parameters: number } };

test("chat, whole and streamed", async () => {
  const whole = await api.chat.completions.create(fields);
  const { content } = whole.choices[0].message;
  const { usage } = whole;
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  let text = "";
  let counted;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await api.chat.completions.create({ ...fields, ...options })) {
    text += chunk.choices[0]?.delta.content ?? "";
    counted = chunk.usage ?? counted;
  }
  assert.equal(text, content);
  assert.equal(counted.completion_tokens, usage.completion_tokens);
  const helped = await api.chat.completions.stream(fields).finalContent();
  assert.equal(helped, content);
});

test("logprobs and several outputs", async () => {
  const more = { logprobs: true, top_logprobs: 2, n: 2, seed: 1, temperature: 1 };
  const answer = await api.chat.completions.create({ ...fields, ...more });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
  for (const { logprobs } of answer.choices) {
    assert.ok(logprobs.content.every((token) => token.top_logprobs.length === 2));
  }
});

test("tools and schemas bind the output", async () => {
  const bound = { ...fields, max_tokens: 120 };
  const asked = { ...bound, tools: [tool], tool_choice: "required", parallel_tool_calls: false };
  const [choice] = (await api.chat.completions.create(asked)).choices;
  assert.equal(choice.finish_reason, "tool_calls");
  const [call] = choice.message.tool_calls;
  assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["n"]);
  const streamed = await api.chat.completions.stream(asked).finalMessage();
  assert.equal(streamed.tool_calls[0].function.arguments, call.function.arguments);
  const format = { type: "json_schema", json_schema: { name: "n", strict: true, schema: number } };
  const parsed = await api.chat.completions.parse({ ...bound, response_format: format });
  assert.deepEqual(Object.keys(parsed.choices[0].message.parsed), ["n"]);
});

test("completions, the best of several", async () => {
  const answer = await api.completions.create({
    model, prompt: "Once", max_tokens: 8, n: 2, best_of: 4, seed: 1, temperature: 1,
  });
  assert.equal(answer.choices.length, 2);
});

test("responses, whole and streamed", async () => {
  const asked = { model, input: "Hello", max_output_tokens: 8, temperature: 0 };
  const whole = await api.responses.create(asked);
  let text = "";
  for await (const event of await api.responses.create({ ...asked, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
});

test("embeddings", async () => {
  const { data } = await api.embeddings.create({ model, input: ["a", "b"] });
  const squares = data.map(({ embedding }) => embedding.reduce((sum, x) => sum + x * x, 0));
  assert.ok(squares.every((square) => Math.abs(square - 1) < 1e-3), String(squares));
});

test("errors are the package's own", async () => {
  const wrong = api.chat.completions.create({ ...fields, temperature: 3 });
  await assert.rejects(wrong, (error) =>
    error instanceof OpenAI.BadRequestError && error.param === "temperature");
  const unknown = api.chat.completions.create({ ...fields, model: "gpt-4" });
  await assert.rejects(unknown, OpenAI.NotFoundError);
});

test("a stream that is left ends the request", async () => {
  const long = { ...fields, max_tokens: 1500, stream: true, ignore_eos: true };
  const stream = await api.chat.completions.create(long);
  for await (const _ of stream) break;
  // The run's own limit ends this if it never comes.
  for (;;) {
    const { requests } = await (await fetch(`${url}/server_info`)).json();
    if (requests === 0) break;
  }
});
