"""
Integrations of tokforget into other libraries. Each module needs only the library in its name; import the module you
need.

    llmlingua      `PromptCompressor` with LLMLingua's calls and result keys (needs nothing: LLMLingua is not used)
    messages       a function `messages -> messages`, to be called before a request (needs nothing)
    litellm        the same as a hook of LiteLLM's proxy
    langchain      document compressor and transformer, and one for messages
    llama_index    node postprocessor
    huggingface    a function for `datasets.map`, and a callable in the manner of a `transformers` pipeline
    ray            a column of a Ray data set
    spark          a column of a Spark data frame
"""
