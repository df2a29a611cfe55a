"""The `instructor` package against a running ring at TANDEM_URL: answers as typed objects. The
schema binds the output, so the model need not be clever."""

import os
import unittest
from typing import Literal

import instructor
import openai
import pydantic

URL = os.environ["TANDEM_URL"]
MESSAGES = [{"role": "user", "content": "Tell me of a city."}]
MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)


class City(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=8)
    people: int = pydantic.Field(ge=1, le=9999)
    kind: Literal["old", "new"]


class Typed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.api = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
        cls.fields = {"model": cls.api.models.list().data[0].id, "messages": MESSAGES,
                      "max_tokens": 160, "temperature": 0, "max_retries": 0}

    def test_every_mode_that_binds_the_output_gives_the_object(self):
        for mode in MODES:
            create = instructor.from_openai(self.api, mode=mode).chat.completions.create
            with self.subTest(mode):
                self.assertIsInstance(create(response_model=City, **self.fields), City)

    def test_a_stream_of_parts_ends_with_the_object(self):
        for mode in MODES:
            chat = instructor.from_openai(self.api, mode=mode).chat.completions
            with self.subTest(mode):
                parts = list(chat.create_partial(response_model=City, **self.fields))
                City.model_validate(parts[-1].model_dump())
                self.assertGreater(len(parts), 1)

    def test_responses(self):
        mode = instructor.Mode.RESPONSES_TOOLS
        create = instructor.from_openai(self.api, mode=mode).responses.create
        city = create(model=self.fields["model"], input="Tell me of a city.", temperature=0,
                      max_output_tokens=160, max_retries=0, response_model=City)
        self.assertIsInstance(city, City)


if __name__ == "__main__":
    unittest.main()
