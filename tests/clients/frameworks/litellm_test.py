"""The `litellm` package against a running ring at TANDEM_URL, by each of its providers that speaks
an API of ours."""

import json
import os
import unittest
import urllib.request

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the network otherwise
import litellm

URL = os.environ["TANDEM_URL"]
with urllib.request.urlopen(f"{URL}/v1/models") as models:
    MODEL = json.load(models)["data"][0]["id"]
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
NUMBER = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["n"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "count", "parameters": NUMBER}}
OPENAI = ("openai", "hosted_vllm")


class Case(unittest.TestCase):
    def ask(self, provider, **fields):
        base = URL if provider == "anthropic" else f"{URL}/v1"
        fields = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0, **fields}
        return litellm.completion(f"{provider}/{MODEL}", api_base=base, api_key="none",
                                  num_retries=0, **fields)


class Completion(Case):
    def test_all_providers_say_the_same_whole_and_streamed(self):
        said = set()
        for provider in (*OPENAI, "anthropic"):
            whole = self.ask(provider)
            said.add(whole.choices[0].message.content)
            self.assertGreater(whole.usage.completion_tokens, 0)
            chunks = list(self.ask(provider, stream=True))
            deltas = (chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            said.add("".join(deltas))
        self.assertEqual(len(said), 1, said)

    def test_a_stream_counts(self):
        options = {"include_usage": True}
        for provider in OPENAI:
            *_, last = self.ask(provider, stream=True, stream_options=options)
            usage = self.ask(provider).usage
            self.assertEqual(last.usage.completion_tokens, usage.completion_tokens)

    def test_logprobs_of_several(self):
        for provider in OPENAI:
            answer = self.ask(provider, logprobs=True, top_logprobs=2, n=2, seed=1)
            for choice in answer.choices:
                self.assertTrue(all(len(token.top_logprobs) == 2
                                    for token in choice.logprobs.content))

    def test_tools_and_schemas_bind(self):
        for provider in OPENAI:
            # The package keeps `parallel_tool_calls` to itself; a choice by name is of one call.
            choice = {"type": "function", "function": {"name": "count"}}
            said = self.ask(provider, tools=[TOOL], tool_choice=choice, max_tokens=120).choices[0]
            self.assertEqual(said.finish_reason, "tool_calls")
            (call,) = said.message.tool_calls
            self.assertEqual(list(json.loads(call.function.arguments)), ["n"])
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER}}
            said = self.ask(provider, response_format=form, max_tokens=120).choices[0]
            self.assertEqual(list(json.loads(said.message.content)), ["n"])

    def test_errors_are_the_packages_own(self):
        with self.assertRaises(litellm.BadRequestError) as caught:
            self.ask("openai", temperature=3)
        self.assertIn("temperature", str(caught.exception))
        with self.assertRaises(litellm.NotFoundError):
            litellm.completion("openai/gpt-4", messages=MESSAGES, api_base=f"{URL}/v1",
                               api_key="none", num_retries=0)


class Others(unittest.TestCase):
    def test_text_embeddings_responses(self):
        fields = {"api_base": f"{URL}/v1", "api_key": "none"}
        text = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Once",
                                       max_tokens=8, best_of=2, **fields)
        self.assertEqual(len(text.choices), 1)
        for provider in OPENAI:
            vectors = litellm.embedding(f"{provider}/{MODEL}", input=["a", "b"], **fields)
            self.assertEqual(len(vectors.data), 2)
            response = litellm.responses(model=f"{provider}/{MODEL}", input="Hi",
                                         max_output_tokens=8, **fields)
            self.assertIn(response.status, ("completed", "incomplete"))


if __name__ == "__main__":
    unittest.main()
