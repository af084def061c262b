"""Messages through other libraries' doors: a plain hook, LiteLLM's proxy, LangChain."""

import asyncio
import copy
import importlib
import logging
import sys
import types

import pytest

from tokforget import Compressor
from tokforget.integrations.messages import MessageCompressor


NOTE = (
    "The harbour of Nordby was rebuilt by Anna Lund after the storm of 1902. It rained for most of the following summer. "
    "Ships of the Petersen line call there every Monday, and the ferry to Skagen leaves at 12:45 from the second pier. "
)
CHAT = [
    {"role": "system", "content": "You are a guide."},
    {"role": "user", "content": "Look up the town."},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "tool_call_id": "c", "content": NOTE * 12},
    {"role": "user", "content": "When does the ferry leave?"},
]  # fmt: skip


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor.from_pretrained()


def test_a_hook_is_what_the_compressor_does(compressor):
    shorten, before = MessageCompressor(compressor, rate=0.3), copy.deepcopy(CHAT)
    assert shorten(CHAT) == compressor.compress_messages(CHAT, rate=0.3).messages != CHAT == before
    assert "12:45" in shorten(CHAT)[3]["content"]
    counted = MessageCompressor(compressor, rate=0.3, count_tokens=len).compress(CHAT)
    assert counted.vocabulary == "len" and counted.compressed_tokens <= counted.target_tokens > 500
    asked = shorten(CHAT, question="Who rebuilt the harbour?", target_tokens=250)
    assert "Anna Lund" in asked[3]["content"]
    with pytest.warns(UserWarning, match="smallest feasible budget"):
        assert len(shorten(CHAT, rate=0.05)) == len(CHAT)
    assert MessageCompressor(compressor, rate=0.5, unit="word", quality=None).options["unit"] == "word"


@pytest.mark.parametrize("options", [{"rate": 3}, {"ratio": 0.5}, {"stable": True, "target_tokens": 9}], ids=str)
def test_wrong_options_are_said_before_the_first_request(compressor, options):
    with pytest.raises((ValueError, TypeError)):
        MessageCompressor(compressor, **options)


@pytest.fixture
def hook_class(monkeypatch):
    """The hook over LiteLLM's own base class, or where it is not installed over one with the same call."""
    try:
        importlib.import_module("litellm.integrations.custom_logger")
    except ImportError:
        names = ("litellm", "litellm.integrations", "litellm.integrations.custom_logger")
        modules = {name: types.ModuleType(name) for name in names}

        class CustomLogger:
            async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
                raise NotImplementedError

        modules[names[-1]].CustomLogger = CustomLogger
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tokforget.integrations.litellm", raising=False)
    yield importlib.import_module("tokforget.integrations.litellm").ForgetMessageHook
    sys.modules.pop("tokforget.integrations.litellm", None)


def test_the_proxy_sends_what_the_hook_returns(hook_class, compressor, caplog):
    # The proxy looks for the method in the class's own dictionary.
    assert "async_pre_call_hook" in vars(hook_class)
    hook, data = hook_class(compressor, rate=0.3), {"model": "m", "messages": CHAT, "stream": True}

    def call(data):
        return asyncio.run(hook.async_pre_call_hook(None, None, data, "completion"))

    assert call(data) == {
        "model": "m",
        "messages": compressor.compress_messages(CHAT, rate=0.3).messages,
        "stream": True,
    }
    assert data["messages"] is CHAT
    anthropic = call({"messages": CHAT[1:], "system": NOTE, "model": "m"})
    expected = compressor.compress_messages(CHAT[1:], rate=0.3, system=NOTE, on_impossible="warn").messages
    assert anthropic == {"messages": expected, "system": NOTE, "model": "m"}
    assert call({"input": "a text"}) == {"input": "a text"}
    with caplog.at_level(logging.WARNING):
        assert call({"messages": [{"content": 3}]}) == {"messages": [{"content": 3}]}
    assert "are sent unchanged: Message 0 has no `role`" in caplog.text


def test_langchain_messages(compressor):
    pytest.importorskip("langchain_core")
    from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.prompts import ChatPromptTemplate

    from tokforget.integrations.langchain import ForgetMessageCompressor

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        SystemMessage(NOTE, id="1"),
        HumanMessage([{"type": "text", "text": NOTE * 3}, image]),
        AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c"}]),
        ToolMessage(NOTE * 9, tool_call_id="c", status="success"),
        ChatMessage(NOTE, role="narrator"),
        HumanMessage("When does the ferry leave?"),
    ]
    before = copy.deepcopy(messages)
    shorten = ForgetMessageCompressor(compressor, rate=0.5)
    found = shorten.transform_messages(messages)
    assert messages == before and [type(m) for m in found] == [type(m) for m in messages]
    assert [found[n] for n in (0, 2, 4, 5)] == [messages[n] for n in (0, 2, 4, 5)]
    assert found[1].content[1] == image and len(found[1].content[0]["text"]) < len(NOTE * 3)
    assert "12:45" in found[3].content and found[3].tool_call_id == "c" and len(found[3].content) < len(NOTE * 9)
    plain = [
        {"role": "system", "content": NOTE}, {"role": "user", "content": messages[1].content},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": NOTE * 9}, {"role": "narrator", "content": NOTE}, {"role": "user", "content": messages[5].content},
    ]  # fmt: skip
    expected = compressor.compress_messages(plain, rate=0.5)
    assert [m.content for m in found] == [m["content"] for m in expected.messages]
    anthropic = AIMessage([{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}],
                          tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c"}])  # fmt: skip
    assert shorten.transform_messages([anthropic]) == [anthropic]
    prompt = ChatPromptTemplate.from_messages([("human", "{text}"), ("ai", "I see."), ("human", "When?")])
    chain = prompt | shorten.transform_messages
    assert len(chain.invoke({"text": NOTE * 12})[0].content) < len(NOTE * 12)
    with pytest.raises(TypeError, match="Dictionaries are for"):
        shorten.transform_messages(plain)
