"""The Responses API through the `openai` package, against a running ring at TANDEM_URL."""

import os
import unittest

import openai

URL = os.environ["TANDEM_URL"]
QUESTION = "What is the capital of France?"
TOOL = {"type": "function", "name": "sum", "description": "Adds numbers.", "strict": False,
        "parameters": {"type": "object", "properties": {"of": {"type": "array"}}}}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.api = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
        cls.model = cls.api.models.list().data[0].id

    def fields(self, **fields):
        return {"model": self.model, "max_output_tokens": 12, "temperature": 0, "input": QUESTION,
                **fields}

    def create(self, **fields):
        return self.api.responses.create(**self.fields(**fields))


class Responses(Case):
    def test_whole_is_what_chat_says(self):
        response = self.create(instructions="Be brief")
        self.assertTrue(response.id.startswith("resp_"))
        same = self.api.chat.completions.create(
            model=self.model, max_tokens=12, temperature=0,
            messages=[{"role": "system", "content": "Be brief"},
                      {"role": "user", "content": QUESTION}])
        self.assertEqual(response.output_text, same.choices[0].message.content)
        self.assertEqual(response.usage.input_tokens, same.usage.prompt_tokens)
        self.assertEqual(response.usage.output_tokens, same.usage.completion_tokens)
        statuses = {"length": "incomplete", "stop": "completed"}
        self.assertEqual(response.status, statuses[same.choices[0].finish_reason])
        self.assertEqual((response.instructions, response.temperature), ("Be brief", 0))

    def test_stream_is_the_whole_in_pieces(self):
        whole = self.create()
        events = list(self.create(stream=True))
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        self.assertEqual(events[0].type, "response.created")
        deltas = (event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual("".join(deltas), whole.output_text)
        final = events[-1].response
        self.assertEqual(events[-1].type, f"response.{whole.status}")
        self.assertEqual(final.output_text, whole.output_text)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)

    def test_stream_helper_accumulates(self):
        with self.api.responses.stream(**self.fields()) as stream:
            *_, last = stream
        self.assertEqual(last.response.output_text, self.create().output_text)

    def test_the_conversation_is_its_items(self):
        first = self.create()
        items = [{"role": "user", "content": QUESTION}, *first.output,
                 {"type": "function_call", "call_id": "call_1", "name": "sum",
                  "arguments": '{"of": [1, 2]}'},
                 {"type": "function_call_output", "call_id": "call_1", "output": "3"}]
        answer = self.create(input=items, tools=[TOOL], tool_choice="auto", store=False)
        self.assertGreater(answer.usage.input_tokens, first.usage.input_tokens)
        self.assertEqual(answer.tools[0].name, "sum")
        text = self.create(text={"format": {"type": "text"}}, metadata={"a": "b"})
        self.assertEqual((text.output_text, text.metadata), (first.output_text, {"a": "b"}))

    def test_what_is_not_kept_is_refused_by_name(self):
        for field in ({"previous_response_id": "resp_1"}, {"store": True}, {"background": True}):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.create(**field)
            self.assertEqual((caught.exception.param, caught.exception.code),
                             (*field, "unsupported_parameter"))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.create(input=[{"role": "user", "content": [{"type": "input_image"}]}])
        self.assertEqual(caught.exception.param, "input[0].content[0].type")


if __name__ == "__main__":
    unittest.main()
