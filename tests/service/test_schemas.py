"""Bodies of requests: the arguments are Python's, and what is wrong is said in one line."""

import inspect

import pytest


pytest.importorskip("pydantic")

from tokforget.compression.compressor import Compressor
from tokforget.service.schemas import CompressBody, MessagesBody, RestoreBody, parse_body


@pytest.mark.parametrize(
    ("method", "body", "not_here"),
    [
        (Compressor.compress, CompressBody, set()),
        (Compressor.compress_messages, MessagesBody, set()),
        (Compressor.restore, RestoreBody, {"batch_size", "progress"}),
    ],
)
def test_arguments_and_defaults_are_those_of_the_method(method, body, not_here):
    given = {
        name: p.default for name, p in inspect.signature(method).parameters.items() if name not in {"self", *not_here}
    }
    own = {name: field for name, field in body.model_fields.items() if name != "details"}
    assert set(own) == set(given)
    for name, field in own.items():
        if given[name] is inspect.Parameter.empty:
            assert field.is_required(), name
        else:
            assert field.default == given[name], name


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The body is not JSON: Expecting value at line 1, column 1."),
        (b'{"texts": ', "The body is not JSON: Expecting value at line 1, column 11."),
        (b"\xff", "The body is not UTF-8: invalid start byte at byte 0. Send JSON in UTF-8."),
        (b"[1, 2]", "The body must be a JSON object with the arguments of /v1/compress, got a list of 2."),
        (b"null", "The body must be a JSON object with the arguments of /v1/compress, got null."),
        (b'{"texts": "a", "texts": "b"}', "the key 'texts' stands twice in an object."),
        (b'{"texts": "a", "rate": NaN}', "NaN is no JSON."),
        (b'{"texts": "a", "rate": 1e999}', "the number 1e999 is too large."),
        (b'{"texts": ' + b"[" * 100_000, "nested too deeply."),
        (b'{"texts": "a", "rate": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_what_is_no_json_object_is_named(data, said):
    with pytest.raises(SyntaxError) as error:
        parse_body(CompressBody, data, "/v1/compress")
    assert said in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{}", "`texts` is missing. It must be a string or a list of strings."),
        (b'{"texts": 3}', "`texts` must be a string or a list of strings, got a number, 3."),
        (b'{"texts": ["a", 3]}', "`texts` must be a string or a list of strings, got a list of 2."),
        (b'{"texts": "a", "raet": 1}', "`raet` is no argument of /v1/compress. Did you mean `rate`? It takes texts, rate,"),
        (b'{"texts": "a", "rate": "half"}', "`rate` must be a number or null, got a string, 'half'."),
        (b'{"texts": "a", "rate": true}', "`rate` must be a number or null, got true."),
        (b'{"texts": "a", "target_tokens": 2.5}', "`target_tokens` must be a whole number or null, got a number, 2.5."),
        (b'{"texts": "a", "nested": 1}', "`nested` must be true or false, got a number, 1."),
        (b'{"texts": "a", "protect": {}}', "`protect` must be a string or a list of strings or lists of whole numbers or null, got an empty object."),
        (b'{"texts": "a", "question": [1]}', "`question` must be a string or a list of strings or null or null, got a list of 1."),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_with_what_came_and_what_is_allowed(data, said):
    with pytest.raises(ValueError) as error:
        parse_body(CompressBody, data, "/v1/compress")
    assert said in str(error.value)


def test_what_is_right_comes_out_as_it_was():
    fields = parse_body(
        CompressBody, b'{"texts": ["\\ud800 a", "\xc3\xa9"], "rate": 1, "question": [null, "q"]}', "/v1/compress"
    )
    assert fields["texts"] == ["\ud800 a", "é"] and fields["rate"] == 1 and fields["question"] == [None, "q"]
    assert fields["protect"] == "readable" and fields["details"] is False
